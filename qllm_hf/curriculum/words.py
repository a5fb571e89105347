"""The words of the small world: people, things, places, and what can be said of them.

Every word here is one token of the reference model, alone or after a space. `LINE_KEYS` are all of them.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS: Final = _words("Mia Anna Lily Zoe Emma Ruth Nora Clara Eva Jane Kate Rose")
BOYS: Final = _words("Tom Ben Max Sam Leo Jack Paul Hugo Finn Adam Carl Otto")
PEOPLE: Final = GIRLS + BOYS

ANIMALS: Final = _words(
    "fox cat dog cow horse sheep goat pig hen duck goose frog bear wolf lion tiger mouse rabbit owl crow eagle "
    "swan snake fish whale shark seal otter deer moose camel donkey bee ant spider crab snail turtle parrot monkey"
)
FOODS: Final = _words(
    "bread milk cheese apple pear plum cherry grape lemon melon peach banana carrot onion potato tomato bean pea "
    "rice corn soup cake pie honey butter sugar salt pepper egg jam toast salad pasta pizza cookie nut tea juice"
)
PLACES: Final = _words(
    "park garden forest beach river lake bridge market school farm barn kitchen attic cellar tower castle church "
    "harbor island valley hill cave field meadow street square station library museum theater hotel village"
)
THINGS: Final = _words(
    "kite drum ball doll lamp book coat hat boot glove scarf ring watch key lock rope bell flute horn violin "
    "piano brush comb mirror basket bottle bucket cup plate spoon fork knife kettle candle clock chair table "
    "bench bed pillow blanket carpet ladder hammer saw nail shovel rake broom wagon sled boat train bike truck "
    "pencil paper map flag mask puzzle marble whistle umbrella backpack compass lantern button needle thread coin"
)
COLOURS: Final = _words("red blue green yellow black white brown gray pink purple orange golden")
QUALITIES: Final = _words(
    "old new big small tall short heavy light loud quiet warm cold soft hard clean dirty dry wet fast slow sharp "
    "dull brave shy rich poor calm wild sweet sour bright dark smooth rough round flat thick thin young strong "
    "weak kind cruel happy sad angry proud lazy busy wise"
)
WEATHER: Final = _words("rain snow wind storm cloud fog ice sun moon star sky thunder")
BODY: Final = _words("hand foot arm leg head nose ear eye mouth knee elbow finger")
PLANTS: Final = _words("oak pine birch willow maple tulip daisy lily moss fern ivy thorn grass reed palm cactus")
METALS: Final = _words("iron gold silver copper tin lead steel brass stone clay glass wood")
JOBS: Final = _words(
    "baker farmer sailor pilot doctor nurse teacher painter singer dancer miner hunter tailor judge king"
)

LINE_KEYS: Final = tuple(
    dict.fromkeys(ANIMALS + FOODS + PLACES + THINGS + COLOURS + QUALITIES + WEATHER + BODY + PLANTS + METALS + JOBS)
)

# Kinds that a word can belong to, for classification from examples. Disjoint on purpose.
KINDS: Final[dict[str, tuple[str, ...]]] = {
    "animal": ANIMALS,
    "food": FOODS,
    "place": PLACES,
    "thing": THINGS,
    "colour": COLOURS,
    "quality": QUALITIES,
    "body": BODY,
    "job": JOBS,
}

# Of no such kind: what examples can be labelled with.
LABELS: Final = WEATHER + PLANTS + METALS


def her(name: str) -> tuple[str, str, str]:
    """The pronouns of a person: ("she", "her", "her") or ("he", "his", "him")."""
    return ("she", "her", "her") if name in GIRLS else ("he", "his", "him")
