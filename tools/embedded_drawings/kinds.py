"""Which of Unicode's emoji are drawn, and the plain word for what each is a kind of."""

# Unicode's subgroups (emoji-test.txt) by the plain word for their members. Subgroups that are not
# named here hold signs and abstractions; they have no kind, and nothing is asked about theirs.
KINDS = {
    "face": (
        "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy "
        "face-unwell face-hat face-glasses face-concerned face-negative face-costume cat-face "
        "monkey-face"
    ),
    "heart": "heart",
    "hand": (
        "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands "
        "hand-prop"
    ),
    "body part": "body-parts",
    "person": (
        "person person-gesture person-role person-fantasy person-activity person-sport "
        "person-resting family"
    ),
    "mammal": "animal-mammal",
    "bird": "animal-bird",
    "reptile": "animal-reptile animal-amphibian",
    "sea animal": "animal-marine",
    "bug": "animal-bug",
    "flower": "plant-flower",
    "plant": "plant-other",
    "fruit": "food-fruit",
    "vegetable": "food-vegetable",
    "dish": "food-prepared food-asian",
    "sweet": "food-sweet",
    "drink": "drink",
    "tableware": "dishware",
    "landscape": "place-geographic",
    "map": "place-map",
    "building": "place-building place-religious",
    "land vehicle": "transport-ground",
    "water vehicle": "transport-water",
    "air vehicle": "transport-air",
    "clock": "time",
    "weather": "sky & weather",
    "sport": "sport award-medal",
    "game": "game",
    "clothing": "clothing",
    "instrument": "musical-instrument",
    "device": "phone computer light & video",
    "book or paper": "book-paper mail",
    "money": "money",
    "office tool": "office writing lock",
    "tool": "tool",
    "science tool": "science medical",
    "household item": "household",
    "flag": "flag country-flag subdivision-flag",
    "arrow": "arrow",
    "road sign": "transport-sign warning",
    "zodiac sign": "zodiac",
    "shape": "geometric",
    "key": "keycap alphanum",
}
SKIN = ("light", "medium-light", "medium", "medium-dark", "dark")
# Subgroups shown in all skin tones; elsewhere the tone changes a few pixels only.
TONED = (
    "person person-gesture hand-fingers-open hand-fingers-partial hand-single-finger "
    "hand-fingers-closed body-parts"
)


def kind_of(subgroup: str) -> str:
    """The word for the members of a Unicode subgroup; "" where there is none."""
    return next((kind for kind, groups in KINDS.items() if _holds(groups, subgroup)), "")


def _holds(groups: str, subgroup: str) -> bool:
    # Two names have blanks around an ampersand.
    names = groups.replace(" & ", "&").split()
    return subgroup.replace(" & ", "&") in names
