"""The language of captions is recognised by their script or by their frequent words."""

import pytest

from extract.text.languages import guess_language

CAPTIONS = {
    "en": ("A man in a red helmet is on a small moped.", "Two dogs are playing in the snow."),
    "de": ("Ein Mann mit einem roten Helm fährt auf einem Moped.", "Die Hunde spielen in dem Schnee."),
    "fr": ("Un homme avec un casque rouge sur un petit cyclomoteur.", "Une femme est debout dans la cuisine."),
    "es": ("Un hombre con un casco rojo en una pequeña moto.", "Una mujer está en la cocina."),
    "nl": ("Een man met een rode helm op een kleine brommer.", "Een vrouw staat in de keuken."),
    "sv": ("En man med en röd hjälm på en liten moped.", "En kvinna står i köket."),
    "uk": ("Чоловік у червоному шоломі на маленькому мопеді.", "Дві собаки граються у снігу."),
    "zh": ("一个戴红色头盔的男人骑着小摩托车。",),
    "ja": ("赤いヘルメットをかぶった男性が小さなモペットに乗っています。",),
    "ko": ("빨간 헬멧을 쓴 남자가 작은 오토바이를 타고 있다.",),
}


@pytest.mark.parametrize("code", CAPTIONS)
def test_a_language_is_known_by_a_caption_or_two(code: str) -> None:
    assert guess_language(CAPTIONS[code]) == code


@pytest.mark.parametrize("captions", [(), ("12 34", "!?"), ("tree mountain river",)])
def test_without_a_frequent_word_it_is_no_language(captions: tuple[str, ...]) -> None:
    assert guess_language(captions) is None
