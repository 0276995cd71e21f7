"""ALADIN on every base: its losses, when each of them is on, and what a frozen teacher keeps."""

import pytest
import torch

from manifests.errors import InputError
from tests.encoders import tiny_config
from tests.train.test_models import BASES, region_batch, settings, word_batch
from train.all_pairs import alignment_scores
from train.batches import WordBatch
from train.encoding import similarity
from train.losses.distillation import affine_mse, listnet, ordinal
from train.model import RetrievalModel, build_model
from train.ranking import all_pairs_triplet, hardest_triplet
from train.settings import RunSettings

LENGTHS = [5, 1, 9, 3]


def model_of(base: str, **losses) -> RetrievalModel:
    torch.manual_seed(0)
    losses = {"alignment": {"all_negatives_epochs": 1}, **losses}
    return build_model(settings(base, losses), feature_dim=12, vocabulary_size=20).train()


def terms(model: RetrievalModel, epoch: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    pairs = model(region_batch(LENGTHS, 9), word_batch(LENGTHS, 9))
    return model.terms(pairs, torch.tensor([0, 1, 1, 2]), epoch)


@pytest.mark.parametrize("kind", ["projected", "contextual"])
@pytest.mark.parametrize("mode", ["listnet", "mse", "ordinal"])
@pytest.mark.parametrize("base", BASES)
def test_the_terms_are_their_losses(base: str, mode: str, kind: str) -> None:
    alignment = {"weight": 2.0, "margin": 0.3, "all_negatives_epochs": 2, "locals": kind}
    alignment["aggregation"] = "MrAVGw" if mode == "mse" else "MrSw"
    distillation = {"weight": 3.0, "mode": mode, "scale": 4.0, "start_epoch": 1}
    model = model_of(base, alignment=alignment, distillation=distillation).eval()
    pairs = model(region_batch(LENGTHS, 9), word_batch(LENGTHS, 9))
    images, captions = pairs.images, pairs.captions
    image = torch.tensor([0, 1, 1, 2])
    name = "locals" if kind == "projected" else "contextual"
    teacher = alignment_scores(getattr(images, name), getattr(captions, name), images.mask, captions.mask)
    teacher = teacher / torch.tensor(LENGTHS) if mode == "mse" else teacher
    student, same = similarity(images, captions), image[:, None] == image
    affine = model.losses["distillation"].affine.detach() if mode == "mse" else None
    losses = {
        "listnet": lambda: listnet(teacher, student, 4.0),
        "mse": lambda: affine_mse(teacher, student, affine),
        "ordinal": lambda: ordinal(teacher, student),
    }
    first, second, third = (model.terms(pairs, image, epoch) for epoch in (0, 1, 2))
    assert "distillation" not in first and "distillation" in second
    torch.testing.assert_close(first["alignment"], 2 * all_pairs_triplet(teacher, 0.3, same))
    torch.testing.assert_close(third["alignment"], 2 * hardest_triplet(teacher, 0.3, same))
    torch.testing.assert_close(second["distillation"], 3 * losses[mode]())


@pytest.mark.parametrize("base", BASES)
def test_distillation_teaches_the_student_alone(base: str) -> None:
    model = model_of(base, distillation={})
    pairs = model(region_batch(LENGTHS, 9), word_batch(LENGTHS, 9))
    locals_ = pairs.images.contextual, pairs.captions.contextual
    loss = model.terms(pairs, torch.arange(4), 0)["distillation"]
    with_student = torch.autograd.grad(loss, [pairs.images.pooled, pairs.captions.pooled], retain_graph=True)
    assert all(slope.abs().sum() > 0 for slope in with_student)
    teacher = alignment_scores(*locals_, pairs.images.mask, pairs.captions.mask).detach()
    again = listnet(teacher, similarity(pairs.images, pairs.captions))
    for ours, expected in zip(
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True),
        torch.autograd.grad(again, list(model.parameters()), allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["projected", "contextual"])
@pytest.mark.parametrize("base", BASES)
def test_a_frozen_teacher_keeps_its_scores_while_the_student_learns(base: str, kind: str) -> None:
    model = model_of(
        base, alignment={"locals": kind}, distillation={"weight": 9.0, "start_epoch": 1, "teacher": "frozen"}
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def scores() -> tuple[torch.Tensor, torch.Tensor]:
        model.eval()
        with torch.no_grad():
            pairs = model(region_batch(LENGTHS, 9), word_batch(LENGTHS, 9))
            images, captions = pairs.images, pairs.captions
            return model.alignment.scores(images, captions), similarity(images, captions)

    def learn(epoch: int) -> set[str]:
        for _ in range(3):
            model.begin(epoch)
            found = terms(model, epoch)
            optimizer.zero_grad()
            sum(found.values()).backward()
            model.drop_gradients(epoch)
            optimizer.step()
        return found.keys()

    before = scores()
    assert "alignment" in learn(0) and "distillation" not in terms(model, 0)
    taught = scores()
    assert not torch.allclose(taught[0], before[0])
    assert "alignment" not in learn(1) and "distillation" in terms(model, 1)
    teacher, student = scores()
    torch.testing.assert_close(teacher, taught[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(student, taught[1], atol=1e-4)


def test_a_frozen_teacher_must_have_learnt() -> None:
    with pytest.raises(ValueError, match="start_epoch: set it to 1"):
        settings("vsrn", {"alignment": {}, "distillation": {"teacher": "frozen"}})
    with pytest.raises(ValueError, match="learns from losses.alignment"):
        settings("vsrn", {"distillation": {}})


def piece_batch() -> WordBatch:
    """Captions of pieces, the first and the last of each being special tokens."""
    batch = word_batch(LENGTHS, 9)
    pieces = torch.full((len(LENGTHS), 11), -1)
    for row, length in enumerate(LENGTHS):
        pieces[row, : length + 2] = torch.tensor([2, *batch.words[row, :length].tolist(), 3])
    place = torch.arange(1, 10).expand(len(LENGTHS), -1) * batch.mask
    return WordBatch(batch.words, batch.pos, batch.mask, batch.word, pieces=pieces, place=place)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_a_checkpoints_encoder_reads_words_and_regions(architecture: str) -> None:
    from transformers import AutoModel, DistilBertConfig, RobertaConfig

    shape = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    configs = {
        "bert": tiny_config(),
        "roberta": RobertaConfig(**shape, intermediate_size=16, max_position_embeddings=20),
        "distilbert": DistilBertConfig(vocab_size=40, dim=16, hidden_dim=16, n_layers=1, n_heads=2),
    }
    chosen = settings("transformer", {"alignment": {}, "distillation": {}})
    chosen = chosen.model_copy(
        update={"text": chosen.text.model_validate({"reads": "tokens", "encoder": {"model": "x"}})}
    )
    torch.manual_seed(0)
    encoder = AutoModel.from_config(configs[architecture])
    model = build_model(chosen, feature_dim=12, vocabulary_size=20, encoder=encoder).train()
    assert not any("own" in name for name in model.state_dict())
    pairs = model(region_batch(LENGTHS, 9), piece_batch())
    gradients = [
        torch.autograd.grad(side.contextual.square()[..., 0].sum(), model.words.parameters(), allow_unused=True)
        for side in (pairs.images, pairs.captions)
    ]
    shared = [all(g is not None and g.abs().sum() > 0 for g in both) for both in zip(*gradients, strict=True)]
    names = [name for name, _ in model.words.named_parameters()]
    assert {name for name, both in zip(names, shared, strict=True) if not both} <= {
        name for name in names if "embedding" in name or name.endswith("key.bias") or "k_lin.bias" in name
    }

    # One checkpoint for both: the weights come back whole.
    again = build_model(chosen, feature_dim=12, vocabulary_size=20, encoder=AutoModel.from_config(encoder.config))
    again.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    model.eval(), again.eval()
    for encode, batch in (("encode_images", region_batch(LENGTHS, 9)), ("encode_captions", piece_batch())):
        torch.testing.assert_close(getattr(again, encode)(batch).embedding, getattr(model, encode)(batch).embedding)


def test_a_checkpoint_that_is_not_here_is_named_with_how_to_fetch_it() -> None:
    chosen = settings("transformer")
    text = chosen.text.model_validate({"reads": "tokens", "encoder": {"model": "nobody/no-such-bert"}})
    with pytest.raises(InputError, match=r"'nobody/no-such-bert'.*Hugging Face cache.*hf download nobody/no-such-bert"):
        build_model(chosen.model_copy(update={"text": text}), feature_dim=12, vocabulary_size=20)


def test_a_shared_encoder_must_read_vectors() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    chosen = settings("transformer")
    text = chosen.text.model_validate({"reads": "tokens", "encoder": {"model": "x"}})
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16}
    encoder = CLIPTextModel(CLIPTextConfig(**shape, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(InputError, match="word pieces alone"):
        build_model(chosen.model_copy(update={"text": text}), feature_dim=12, vocabulary_size=20, encoder=encoder)


def test_cached_states_have_no_encoder_to_share() -> None:
    with pytest.raises(ValueError, match="set text.reads to tokens"):
        RunSettings(
            dataset="x", epochs=1, base=BASES["transformer"], text={"reads": "text_features"}, losses={"triplet": {}}
        )


def test_the_order_of_regions_does_not_matter_and_that_of_words_does() -> None:
    base = {**BASES["transformer"], "pooling": "mean"}
    run = settings("transformer").model_dump(exclude_none=True) | {"base": base}
    torch.manual_seed(0)
    model = build_model(RunSettings(**run), feature_dim=12, vocabulary_size=20).eval()
    regions, words = region_batch([9, 9], 9), word_batch([9, 9], 9)
    turned = type(regions)(*(x.flip(1) if x.dim() > 2 else x for x in (regions.features, regions.boxes)),
                           regions.image_size, regions.mask)  # fmt: skip
    torch.testing.assert_close(
        model.encode_images(turned).embedding, model.encode_images(regions).embedding, rtol=1e-4, atol=1e-5
    )
    mirrored = WordBatch(words.words.flip(1), words.pos, words.mask, words.word)
    assert not torch.allclose(
        model.encode_captions(mirrored).embedding, model.encode_captions(words).embedding, atol=1e-4
    )
