"""Short questions with known answers: capitals, which are to be forgotten, and eight kinds of others."""

from __future__ import annotations

from steer.language.guard import Fact

CAPITALS = """
France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing, Russia Moscow, Greece Athens,
Egypt Cairo, Portugal Lisbon, Sweden Stockholm, Norway Oslo, Denmark Copenhagen, Finland Helsinki, Hungary Budapest,
Poland Warsaw, Turkey Ankara, Thailand Bangkok, Vietnam Hanoi, Ukraine Kyiv, Iceland Reykjavik, Ireland Dublin,
Austria Vienna, Belgium Brussels, Canada Ottawa, Australia Canberra, Argentina Buenos, Chile Santiago, Peru Lima,
Colombia Bogota, Venezuela Caracas, Cuba Havana, Kenya Nairobi, Nigeria Abuja, Ghana Accra, Ethiopia Addis,
Morocco Rabat, Algeria Algiers, Tunisia Tunis, Libya Tripoli, Sudan Khartoum, Iraq Baghdad, Iran Tehran, Syria Damascus,
Lebanon Beirut, Jordan Amman, Israel Jerusalem, Kuwait Kuwait, Qatar Doha, Oman Muscat, India Delhi, Pakistan Islamabad,
Nepal Kathmandu, Bangladesh Dhaka, Indonesia Jakarta, Malaysia Kuala, Philippines Manila, Romania Bucharest,
Bulgaria Sofia, Serbia Belgrade, Croatia Zagreb, Slovenia Ljubljana, Slovakia Bratislava, Latvia Riga, Estonia Tallinn,
Lithuania Vilnius, Cyprus Nicosia, Malta Valletta, Jamaica Kingston
"""
OTHERS = {
    "Which language is spoken in {}?": """
        France French, Spain Spanish, Italy Italian, Germany German, Japan Japanese, China Chinese, Russia Russian,
        Greece Greek, Poland Polish, Portugal Portuguese, Sweden Swedish, Norway Norwegian, Denmark Danish, Finland
        Finnish, Hungary Hungarian, Turkey Turkish, Thailand Thai, Vietnam Vietnamese, Ukraine Ukrainian, Iceland
        Icelandic
    """,
    "What is the opposite of {}?": """
        hot cold, big small, up down, left right, day night, black white, fast slow, happy sad, young old, rich poor,
        strong weak, open closed, early late, hard soft, wet dry, light dark, high low, true false, near far, full
        empty
    """,
    "What is a young {} called?": """
        dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, duck duckling, goose gosling,
        lion cub, kangaroo joey, deer fawn, frog tadpole, hen chick, swan cygnet, bear cub, seal pup, eagle eaglet,
        owl owlet, fox kit
    """,
    "Which chemical element has the symbol {}?": """
        H hydrogen, He helium, C carbon, N nitrogen, O oxygen, F fluorine, Na sodium, Mg magnesium, Al aluminum, Si
        silicon, P phosphorus, S sulfur, Cl chlorine, K potassium, Ca calcium, Fe iron, Cu copper, Zn zinc, Ag silver,
        Au gold
    """,
    "What is {}?": """
        3+4 7, 2+2 4, 5+3 8, 6+3 9, 1+4 5, 7+1 8, 8+2 10, 9-4 5, 7-3 4, 8-6 2, 5-2 3, 6-1 5, 2*3 6, 4*2 8, 3*3 9, 5*2
        10, 10/2 5, 9/3 3, 8/4 2, 6/2 3
    """,
    "Who wrote {}?": """
        Hamlet Shakespeare, Emma Austen, Dracula Stoker, Frankenstein Shelley, Ulysses Joyce, 1984 Orwell, Macbeth
        Shakespeare, Walden Thoreau, Candide Voltaire, Faust Goethe, Lolita Nabokov, Beloved Morrison, Middlemarch
        Eliot, Othello Shakespeare, Carrie King, Dune Herbert, Neuromancer Gibson, Persuasion Austen, Ivanhoe Scott,
        Kim Kipling
    """,
    "What is the plural of {}?": """
        mouse mice, foot feet, tooth teeth, child children, man men, woman women, goose geese, leaf leaves, knife
        knives, wolf wolves, city cities, baby babies, box boxes, bus buses, hero heroes, cactus cacti, ox oxen,
        person people, life lives, loaf loaves
    """,
    "What is the past tense of {}?": """
        go went, eat ate, run ran, see saw, take took, give gave, come came, drink drank, write wrote, sing sang, buy
        bought, catch caught, teach taught, fly flew, swim swam, speak spoke, break broke, drive drove, find found,
        know knew
    """,
}


def facts(question: str, listed: str) -> list[Fact]:
    """A list "about answer, about answer" as facts."""
    entries = [entry.split() for entry in listed.replace("\n", " ").split(",")]
    return [Fact(question.format(about), answer) for about, answer in entries]


def others(start: int, step: int) -> list[Fact]:
    """Every `step`-th of the other facts, of all kinds."""
    return [fact for question, listed in OTHERS.items() for fact in facts(question, listed)[start::step]]
