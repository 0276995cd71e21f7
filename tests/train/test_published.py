"""Every encoder and model equals the authors', module by module, from the published names of their parameters.

The values are in `tests/data/encoders.npz` and `distillation_models.npz` (no dropout, float64). Other files of the
kind, of other sizes, are taken from the environment variables ENCODERS_NPZ and DISTILLATION_NPZ.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.alignments import Alignments, Locals
from eval.metrics.unimodal import caption_recalls
from eval.ndcg import CUTOFF, likeness_ndcg, ndcg_at
from eval.rouge import RougeL
from train.bases.vse_infinity import GeneralizedPooling
from train.batches import RegionBatch, TeacherBatch, WordBatch
from train.encoding import Encoding, similarity
from train.losses import LOSSES
from train.losses.distillation import affine_mse, listnet, ordinal
from train.losses.loss import Loss, Shape, Step
from train.model import Pairs, RetrievalModel, build_model
from train.published import matched, names_of
from train.ranking import triplet
from train.settings import RunSettings

DATA = Path(__file__).parents[1] / "data"
ENCODERS = dict(np.load(os.environ.get("ENCODERS_NPZ", DATA / "encoders.npz")))
MODES = ("eval", "train")


def close(ours: Tensor, theirs: np.ndarray, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(np.asarray(theirs)), rtol=tolerance, atol=tolerance)


def given(group: str, name: str) -> Tensor:
    return torch.from_numpy(ENCODERS[f"{group}/{name}"])


def weights(group: str, file: dict[str, np.ndarray] = ENCODERS) -> dict[str, Tensor]:
    begin = f"{group}/weights/"
    return {name.removeprefix(begin): torch.from_numpy(x) for name, x in file.items() if name.startswith(begin)}


def filled(
    settings: dict[str, Any], parts: dict[str, str], feature_dim: int, words: int = 5, **build: Any
) -> RetrievalModel:
    """A model with the published parameters of some parts, by the groups of the file that hold them."""
    run = {"dataset": "x", "epochs": 2, "losses": {"triplet": {}, "cra": {}}, **settings}
    model = build_model(RunSettings(**run), feature_dim, words, **build).double()
    found = matched(model, {side: weights(group) for side, group in parts.items()})
    assert not found.unexpected and not found.mismatched
    sides = {side for side in parts if side}
    assert not [name for name in found.missing if any(f".{side}." in name for side in sides)]
    model.load_state_dict(found.weights, strict=False)
    return model


def whole(rows: int, columns: int) -> Tensor:
    return torch.ones(rows, columns, dtype=torch.bool)


def region_batch(group: str) -> RegionBatch:
    features = given(group, "features")
    boxes = f"{group}/boxes" in ENCODERS
    return RegionBatch(
        features=features,
        boxes=given(group, "boxes") if boxes else torch.ones(*features.shape[:2], 4).double(),
        image_size=given(group, "image_size") if boxes else torch.ones(len(features), 2).double(),
        mask=whole(*features.shape[:2]),
    )


def word_batch(rows: int, columns: int, **fields: Tensor) -> WordBatch:
    places = torch.arange(columns).expand(rows, -1)
    plain = WordBatch(words=places, pos=places.byte(), mask=whole(rows, columns), word=places)
    return replace(plain, **fields)


def check(group: str, mode: str, found: dict[str, Tensor]) -> None:
    names = {name.removeprefix(f"{group}/{mode}/") for name in ENCODERS if name.startswith(f"{group}/{mode}/")}
    assert found.keys() == names
    for name, tensor in found.items():
        close(tensor, ENCODERS[f"{group}/{mode}/{name}"])


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def context(side: str, encoding) -> dict[str, Tensor]:
    """What CRA's module gives: its locals and guided global, and the fused context from the embedding."""
    dim = encoding.pooled.shape[-1]
    fused = encoding.context[:, dim:] * 2 if side == "images" else encoding.context[:, :dim]
    return {"context_locals": encoding.parts["cra_locals"], "guided": encoding.parts["cra_guided"], "fused": fused}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data", ["f30k", "coco"])
def test_vsrns_images(data: str, mode: str) -> None:
    group = f"vsrn_{data}"
    own = weights(group)
    layers = sum(name.endswith(".theta.weight") for name in own)
    base = {"name": "vsrn", "dim": len(own["fc.bias"]), "graph_layers": layers}
    base |= {"unit_regions": data == "coco", "final_norm": data == "f30k"}
    batch = region_batch(group)
    settings = {"base": base, "text": {"reads": "tokens"}}
    model = filled(settings, {"images": group}, batch.features.shape[-1]).train(mode == "train")
    found = model.encode_images(batch)
    ours = {"base": found.pooled[:, 0], "reasoned": unit(found.contextual), "concepts": found.locals}
    check(group, mode, ours | context("images", found))


@pytest.mark.parametrize("mode", MODES)
def test_vsrns_captions(mode: str) -> None:
    own, ids = weights("vsrn_text"), given("vsrn_text", "ids")
    vocabulary, width = own["embed.weight"].shape
    base = {"name": "vsrn", "dim": len(own["local_fc.bias"]), "graph_layers": 0}
    settings = {"base": base, "text": {"reads": "tokens", "word_dim": width}}
    model = filled(settings, {"captions": "vsrn_text"}, 3, vocabulary).train(mode == "train")
    found = model.encode_captions(word_batch(*ids.shape, words=ids))
    ours = {"base": found.pooled[:, 0], "concepts": found.locals}
    check("vsrn_text", mode, ours | context("captions", found))


def camera(dim: int, width: int, views: int, **parts: str) -> dict[str, Any]:
    base = {"name": "camera", "dim": dim, "heads": dim // width, "views": views, "dropout": 0.0}
    return {"base": base, "text": {"reads": "text_features"}}


@pytest.mark.parametrize("mode", MODES)
def test_cameras_images(mode: str) -> None:
    own, batch = weights("camera_image"), region_batch("camera_image")
    width, views = len(own["agsa.att_layers.0.fc_q.bias"]), len(own["mvs.convs_fc.bias"])
    settings = camera(len(own["fc.bias"]), width, views)
    model = filled(settings, {"images": "camera_image"}, batch.features.shape[-1], text_dim=4).train(mode == "train")
    found = model.encode_images(batch)
    ours = {"views": found.pooled, "view_weights": found.view_weights, "concepts": found.locals}
    ours["contextual"] = unit(found.contextual)
    check("camera_image", mode, ours | context("images", found))


@pytest.mark.parametrize("mode", MODES)
def test_cameras_captions(mode: str) -> None:
    own, states = weights("camera_text"), given("camera_text", "states")
    settings = camera(len(own["mapping.bias"]), len(own["agsa.att_layers.0.fc_q.bias"]), 2)
    model = filled(settings, {"captions": "camera_text"}, 3, text_dim=states.shape[-1]).train(mode == "train")
    found = model.encode_captions(word_batch(*states.shape[:2], features=states))
    ours = {"base": found.pooled[:, 0], "concepts": found.locals, "attended": found.contextual}
    check("camera_text", mode, ours | context("captions", found))


@pytest.mark.parametrize("mode", MODES)
def test_vse_infinitys_images(mode: str) -> None:
    own, batch = weights("vse_infinity_image"), region_batch("vse_infinity_image")
    base = {"name": "vse_infinity", "dim": len(own["fc.bias"]), "position_dim": own["gpool.linear.weight"].shape[1]}
    settings = {"base": base, "text": {"reads": "tokens"}, "losses": {"triplet": {}}}
    model = filled(settings, {"images": "vse_infinity_image"}, batch.features.shape[-1]).train(mode == "train")
    check("vse_infinity_image", mode, {"base": model.encode_images(batch).pooled[:, 0]})


def test_generalized_pooling() -> None:
    own, lengths, x = weights("gpo"), given("gpo", "lengths"), given("gpo", "sequences")
    pooling = GeneralizedPooling(own["linear.weight"].shape[1]).double()
    pooling.load_state_dict({name.replace("linear.", "out."): tensor for name, tensor in own.items()})
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    close(pooling.weights(x.shape[1])[lengths - 1], ENCODERS["gpo/weights_of_places"])
    close(pooling(x, mask), ENCODERS["gpo/pooled"])


def test_the_caption_decoder() -> None:
    own, regions, labels = (
        weights("caption_decoder"),
        given("caption_decoder", "regions"),
        given("caption_decoder", "labels"),
    )
    vocabulary, width = own["decoder.embedding.weight"].shape
    settings = {
        "base": {"name": "vsrn", "dim": regions.shape[-1], "graph_layers": 0},
        "text": {"reads": "tokens", "word_dim": width},
    }
    settings["losses"] = {"generation": {"dim": len(own["encoder.vid2hid.bias"]), "dropout": 0.0}}
    boundary_ids = int(ENCODERS["caption_decoder/start"]), int(ENCODERS["caption_decoder/end"])
    model = filled(settings, {None: "caption_decoder"}, 3, vocabulary, boundary_ids=boundary_ids)
    lengths = given("caption_decoder", "mask").sum(1).long() - 2
    words = labels[:, 1:-1]
    mask = torch.arange(words.shape[1]) < lengths[:, None]
    losses = model.losses["generation"].losses(regions, whole(*regions.shape[:2]), words, mask)
    close(losses.mean(), ENCODERS["caption_decoder/loss"])


# -- ALADIN ------------------------------------------------------------------------------------------------------------

DISTILLATION = dict(np.load(os.environ.get("DISTILLATION_NPZ", DATA / "distillation_models.npz")))
START = 2  # of the distillation that follows the alignment


def reference(name: str, group: str = "aladin") -> Tensor:
    return torch.from_numpy(np.asarray(DISTILLATION[f"{group}/{name}"]))


def up_to(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width) < lengths[:, None]


def aladin(**losses: dict[str, Any]) -> RetrievalModel:
    from transformers import BertConfig, BertModel

    own = weights("aladin", DISTILLATION)
    bert = "oscar_model.bert."

    def size(name: str) -> int:
        return len(own[f"{bert}{name}"])

    def layers(begin: str) -> int:
        return 1 + max(int(name.removeprefix(begin).split(".")[0]) for name in own if name.startswith(begin))

    config = BertConfig(
        vocab_size=size("embeddings.word_embeddings.weight"),
        hidden_size=size("img_embedding.bias"),
        num_hidden_layers=layers(f"{bert}encoder.layer."),
        num_attention_heads=int(reference("bert_heads")),
        intermediate_size=size("encoder.layer.0.intermediate.dense.bias"),
        max_position_embeddings=size("embeddings.position_embeddings.weight"),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    base = {
        "name": "transformer",
        "dim": config.hidden_size,
        "head_heads": int(reference("head_heads")),
        "dropout": 0.0,
    }
    base["head_layers"] = layers("final_projection_net.layers.")
    run = {"base": base, "text": {"reads": "tokens", "encoder": {"model": "x"}}, "losses": losses or {"alignment": {}}}
    features = reference("features").shape[-1] - 6
    model = build_model(
        RunSettings(dataset="x", epochs=9, **run), features, config.vocab_size, encoder=BertModel(config)
    )
    found = matched(model.double(), {"images": own})
    assert not found.missing and not found.unexpected and not found.mismatched
    model.load_state_dict(found.weights, strict=False)
    return model


def aladins_states(model: RetrievalModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The encoder's states of captions and of regions beside labels, each with its mask."""
    encoder, ids = model.base.encoder, reference("text_ids")
    text_mask = up_to(reference("text_lengths"), ids.shape[1])
    labels = encoder.model.embeddings(input_ids=reference("label_ids"), token_type_ids=reference("label_segments"))
    label_mask = up_to(reference("label_lengths"), labels.shape[1])
    regions = model.base.regions(reference("features"))
    mask = up_to(reference("region_lengths"), regions.shape[1])
    beside = encoder.of_embedded(torch.cat([labels, regions], 1), torch.cat([label_mask, mask], 1))
    return encoder(ids, text_mask), text_mask, beside[:, labels.shape[1] :], mask


def test_aladins_encoder_and_matching_head() -> None:
    model = aladin().eval()
    texts, text_mask, images, mask = aladins_states(model)
    alone = model.base.encoder.of_embedded(model.base.regions(reference("features")), mask)
    close(texts[text_mask], reference("text_states")[text_mask])
    close(images[mask], reference("image_states")[mask])
    close(alone[mask], reference("image_states_without_labels")[mask])
    for states, own, side in ((texts, text_mask, "text"), (images, mask, "image")):
        close(model.base.matching.states(states, own)[own], reference(f"head_{side}_states")[own])
        close(model.base.matching(states, own), reference("caption_vectors" if side == "text" else "image_vectors"))


def aladins_pairs(model: RetrievalModel) -> Pairs:
    """Encoded pairs; the published slices leave out the first region, CLS, the last piece and SEP."""
    texts, text_mask, images, mask = aladins_states(model)
    place = torch.arange(texts.shape[1])
    compared = (place > 0) & (place < reference("text_lengths")[:, None] - 2)

    def encoding(states: Tensor, whole: Tensor, own: Tensor) -> Encoding:
        vectors = model.base.matching(states, whole)[:, None]
        return Encoding(own, unit(states), states, vectors, context=vectors[:, 0, :0])

    regions = mask & (torch.arange(mask.shape[1]) > 0)
    captions = encoding(texts, text_mask, compared)
    return Pairs(encoding(images, mask, regions), captions, compared.byte(), {})


@pytest.mark.parametrize("aggregation", ["MrSw", "MrAVGw", "MwSr", "symm", "sum", "mean"])
def test_aladins_alignment_head(aggregation: str) -> None:
    teacher = aladin(alignment={"aggregation": aggregation}).alignment
    pairs = aladins_pairs(aladin())
    scores = teacher.scores(pairs.images, pairs.captions)
    if aggregation == "mean":  # published, of the padded batch: docs/method.md
        regions, words = pairs.images.mask.sum(1), pairs.captions.mask.sum(1)
        scores = scores * (regions[:, None] * words) / (regions.max() * words.max())
    group = f"alignment/{aggregation}"
    close(scores, reference(f"{group}/scores"))
    close(triplet(scores, 0.2, None, hardest=True), reference(f"{group}/triplet"))
    if f"aladin/{group}/triplet_all" in DISTILLATION:
        close(triplet(scores, 0.2, None, hardest=False), reference(f"{group}/triplet_all"))
    if f"aladin/{group}/scores_at_evaluation" in DISTILLATION:
        counts = (pairs.images.mask.sum(1), pairs.captions.mask.sum(1))
        sides = [
            Locals(side.contextual.detach()[side.mask], (count.cumsum(0) - count).numpy(), count.numpy())
            for side, count in zip((pairs.images, pairs.captions), counts, strict=True)
        ]
        image, caption = np.divmod(np.arange(scores.numel()), scores.shape[1])
        found = Alignments(*sides, aggregation).exact(image, caption).reshape(scores.shape)
        close(torch.from_numpy(found), reference(f"{group}/scores_at_evaluation"))


def test_aladins_matching_scores() -> None:
    pairs = aladins_pairs(aladin())
    scores = similarity(pairs.images, pairs.captions)
    close(scores, reference("matching/scores"))
    close(triplet(scores, 0.2, None, hardest=True), reference("matching/triplet"))


@pytest.mark.parametrize("mode", ["listnet", "mse", "ordinal"])
def test_aladins_distillation(mode: str) -> None:
    loss = aladin(alignment={}, distillation={"mode": mode}).losses["distillation"]
    pairs = aladins_pairs(aladin())
    vectors = [side.pooled[:, 0].detach().requires_grad_() for side in (pairs.images, pairs.captions)]
    student = (vectors[0] @ vectors[1].T).requires_grad_()
    student.retain_grad()
    teacher = loss._teacher[0].scores(pairs.images, pairs.captions)
    value = {"listnet": listnet, "ordinal": ordinal}.get(mode, lambda t, s: affine_mse(t, s, loss.affine))(
        teacher, student
    )
    value.backward()
    tolerance = 1e-8 if mode == "listnet" else 1e-9  # published, 1e-10 is added to probabilities
    close(value, reference(f"distillation/{mode}/loss"), tolerance)
    close(student.grad, reference(f"distillation/{mode}/grad_student"), tolerance)
    if mode == "mse":
        close(loss.affine.grad, reference("distillation/mse/grad_wb"), tolerance)


# Losses of each published phase, and its epoch.
JOINT = {"alignment": {}, "distillation": {}}
FROZEN = {"alignment": {}, "distillation": {"start_epoch": START, "teacher": "frozen"}}
PHASES = {
    "align": ({"alignment": {}}, 0),
    "joint": (JOINT, 0),
    "joint_before": ({"alignment": {}, "distillation": {"start_epoch": START}}, 0),
    "joint_triplet": (JOINT | {"triplet": {"weight": 0.1, "all_negatives_epochs": 0}}, 0),
    "frozen": (FROZEN, START),
}


@pytest.mark.parametrize("phase", PHASES)
def test_aladins_phases(phase: str) -> None:
    """Which terms there are, what they are, and what they move."""
    losses, epoch = PHASES[phase]
    model = aladin(**losses)
    model.begin(epoch)
    pairs = aladins_pairs(model)
    states = {"text": pairs.captions.contextual, "image": pairs.images.contextual}
    for each in states.values():
        each.retain_grad()
    terms = model.terms(pairs, torch.arange(len(reference("text_ids"))), epoch)
    total = sum(terms.values())
    total.backward()
    model.drop_gradients(epoch)
    group = f"phase/{phase}"
    close(total, reference(f"{group}/total"), 1e-8)
    published = {"triplet": "matching", "alignment": "alignment", "distillation": "distillation"}
    names = {f"aladin/{group}/{published[name]}" for name in terms}
    assert names == {
        f"aladin/{group}/{name}" for name in published.values() if f"aladin/{group}/{name}" in DISTILLATION
    }
    for name, term in terms.items():
        close(term / model.losses[name].options.weight, reference(f"{group}/{published[name]}"), 1e-8)

    theirs = names_of(model, "images")
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    learns = {begin.split(".")[0] for begin, ours in theirs.items() if ours and any(n.startswith(ours) for n in moved)}
    assert sorted(learns) == sorted(reported_texts(f"{group}/learns"))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    begin = f"aladin/{group}/grad/"
    for name, expected in DISTILLATION.items():
        if name.startswith(begin):
            published_name = name.removeprefix(begin)
            found = max((start for start in theirs if published_name.startswith(start)), key=len)
            close(gradients[theirs[found] + published_name.removeprefix(found)], expected, 1e-8)
    for side, each in states.items():
        if f"aladin/{group}/grad_{side}_states" in DISTILLATION:
            close(each.grad, reference(f"{group}/grad_{side}_states"), 1e-8)


def test_a_frozen_teacher_beside_a_triplet_on_the_student_alone() -> None:
    pairs = aladins_pairs(aladin(alignment={}, triplet={"all_negatives_epochs": 0}))
    model = aladin(triplet={"all_negatives_epochs": 0})
    terms = model.terms(pairs, torch.arange(len(reference("text_ids"))), 0)
    assert terms.keys() == {"triplet"}
    close(terms["triplet"], reference("phase/frozen_triplet/total"))


def reported_texts(name: str) -> list[str]:
    return DISTILLATION[f"aladin/{name}"].tolist()


def test_aladins_ndcg() -> None:
    captions = DISTILLATION["aladin_ndcg/captions"].tolist()
    relevance = DISTILLATION["aladin_ndcg/relevance"]
    image_of = np.repeat(np.arange(relevance.shape[1]), len(captions) // relevance.shape[1])
    rouge = RougeL(captions)
    ours = np.stack([rouge.with_images(caption, image_of) for caption in range(len(captions))])
    np.testing.assert_allclose(ours, relevance, atol=1e-6)
    rankings = {way: DISTILLATION[f"aladin_ndcg/ranking_{way}"][:, :CUTOFF] for way in ("i2t", "t2i")}
    i2t = [ndcg_at(ours[:, image], ranking) for image, ranking in enumerate(rankings["i2t"])]
    t2i = [ndcg_at(own, ranking) for own, ranking in zip(ours, rankings["t2i"], strict=True)]
    np.testing.assert_allclose(i2t, DISTILLATION["aladin_ndcg/i2t"], atol=1e-6)
    np.testing.assert_allclose(t2i, DISTILLATION["aladin_ndcg/t2i"], atol=1e-6)
    found = likeness_ndcg(rouge, image_of, relevance.shape[1], rankings)
    assert found == {"i2t": round(100 * np.mean(i2t), 4), "t2i": round(100 * np.mean(t2i), 4)}


# -- CUSA --------------------------------------------------------------------------------------------------------------

# The published names of what a term learns.
CUSA_NAMES = {
    "cusa_contrast": {"tau": "temperature.value"},
    "csa": {"cross_tau": "temperature.value"},
    "usa": {
        "uni_tau_image": "temperature.value",
        "uni_tau": "temperature.value",
        "uni_tau_text": "caption_temperature.value",
    },
}
for loss, kind in (("csa", "cross"), ("usa", "uni")):
    for side, ours in (("image", "images"), ("text", "captions")):
        for number, begin in enumerate(("ln_", "")):
            for end in ("weight", "bias"):
                CUSA_NAMES[loss][f"{begin}{kind}_{side}_projection.{end}"] = f"{ours}.{number}.{end}"
CUSA_TERMS = {"cusa_contrast": "contrastive", "csa": "cross_modal", "usa": "uni_modal"}


@pytest.mark.parametrize("case", ["published", "contrast_sum", "moved", "one_uni_tau"])
def test_cusas_losses(case: str) -> None:
    features = [reference(f"{side}_features", "cusa").requires_grad_() for side in ("image", "text")]
    dim = features[0].shape[1]
    options = {
        "cusa_contrast": {"divided": case in ("published", "moved")},
        "csa": {"teacher_temperature": float(reference("weights/cross_the_softlabel_tau", "cusa"))},
        "usa": {"one_temperature": case == "one_uni_tau"},
    }
    losses: dict[str, Loss] = {}
    for name in sorted(options):
        kind = LOSSES.find(name)
        losses[name] = kind(kind.Settings(**options[name]), Shape(dim, dim, 5, 4, (2, 3)), losses).double()
    with torch.no_grad():
        for name, parameters in CUSA_NAMES.items():
            ours = dict(losses[name].named_parameters())
            for theirs, own in parameters.items():
                for place in ("weights", f"{case}/given"):
                    if f"cusa/{place}/{theirs}" in DISTILLATION and own in ours:
                        ours[own].copy_(reference(f"{place}/{theirs}", "cusa"))
    everywhere = torch.ones(len(features[0]), 1, dtype=torch.bool)
    sides = [Encoding(everywhere, x[:, None], x[:, None], x[:, None], context=x[:, :0]) for x in features]
    idx = reference("idx", "cusa")
    teachers = TeacherBatch(*(reference(f"softlabel_{side}_features", "cusa") for side in ("image", "text")))
    step = Step(*sides, idx[:, None] == idx, everywhere.byte(), {}, teachers, 0)
    rates = {"cusa_contrast": 1.0, "csa": 0.1, "usa": 0.5}
    terms = {name: rates[name] * loss(step) for name, loss in losses.items()}
    for name, term in terms.items():
        close(term, reference(f"{case}/{CUSA_TERMS[name]}", "cusa"))
    total = sum(terms.values())
    close(total, reference(f"{case}/total", "cusa"))
    total.backward()
    gradients = {"image_features": features[0].grad, "text_features": features[1].grad}
    for name, parameters in CUSA_NAMES.items():
        ours = dict(losses[name].named_parameters())
        gradients |= {theirs: ours[own].grad for theirs, own in parameters.items() if own in ours}
        for theirs, own in parameters.items():
            if own in ours and f"cusa/{case}/used/{theirs}" in DISTILLATION:
                close(ours[own], reference(f"{case}/used/{theirs}", "cusa"))
    begin = f"cusa/{case}/grad/"
    expected = {name.removeprefix(begin): x for name, x in DISTILLATION.items() if name.startswith(begin)}
    for name, x in expected.items():
        close(gradients[name], x)
    close(losses["csa"].scores(step), reference("logits_per_image", "cusa"))
    for side, end, x in (("images", "image_image", features[0]), ("captions", "text_text", features[1])):
        vectors = losses["usa"].within(side, x)
        close(vectors @ vectors.T, reference(f"logits_{end}", "cusa"))


def test_cusas_retrieval_within_a_modality() -> None:
    features, labels = DISTILLATION["cusa_unimodal/features"], DISTILLATION["cusa_unimodal/labels"]
    found = caption_recalls(features.astype(np.float32), labels)
    assert found["t2t_r1"] == pytest.approx(float(DISTILLATION["cusa_unimodal/rank1"]), abs=1e-4)
