"""What prompts ask for, and where their words stand among the tokens."""

from dataclasses import replace

import pytest
import tiny

from steer.diffusion.controllers import compose
from steer.diffusion.controllers.compose import Relation, constraints, parse, positions
from steer.diffusion.controllers.compose.tokens import streams

NAMES = ("fox", "house", "red apple", "hot dog", "Santa Claus", "t-shirt")
SAID = [
    ("a red apple on the left of a wooden chair", (), ["red apple", "wooden chair"], [("left of", 0, 1)]),
    ("a photo of a small dog and a red and black cat", (), ["small dog", "red black cat"], [("and", 0, 1)]),
    ("two old fire engines below a dark-blue kite", (), ["old fire engines", "dark-blue kite"], [("below", 0, 1)]),
    ("the apple is red and the car is blue", (), ["red apple", "blue car"], [("and", 0, 1)]),
    ("a cat wearing a hat, in the style of Monet, on a green background", (), ["cat", "hat"], []),
    (
        "a cat is on top of a box to the right of a bed",
        (),
        ["cat", "box", "bed"],
        [("above", 0, 1), ("right of", 1, 2)],
    ),
    ("an orange and a pear", (), ["orange", "pear"], []),
    ("fox to the left of house, twemoji style", NAMES, ["fox", "house"], [("left of", 0, 1)]),
    ("a green hot dog, noto style, on a blue background", NAMES, ["green hot dog"], []),
    ("Santa Claus above red apple, fluent-flat style", NAMES, ["Santa Claus", "red apple"], [("above", 0, 1)]),
    ("T-shirt and red apple", NAMES, ["T-shirt", "red apple"], [("and", 0, 1)]),
]


@pytest.mark.parametrize(("prompt", "names", "entities", "relations"), SAID)
def test_prompts_are_read(prompt, names, entities, relations):
    found = parse(prompt, names)
    assert [str(entity) for entity in found.entities] == entities
    assert [(r.kind, r.one, r.other) for r in found.relations] == relations


def test_every_caption_of_the_emoji_world_is_read():
    from steer.zoo.data import RELATIONS, captions, scene_caption

    names = tuple(row["name"] for row in captions())
    kinds = dict(zip(RELATIONS, ("left of", "above", "and"), strict=True))
    for k, (a, b) in enumerate(zip(names, names[1:])):
        relation = RELATIONS[k % 3]
        found = parse(scene_caption(a, relation, b, "noto"), names)
        assert [str(entity) for entity in found.entities] == [a, b]
        assert found.relations == (Relation(kinds[relation], 0, 1),)


def test_constraints_come_from_names_too():
    prompt = "a red apple above a red house"
    found = constraints(prompt, {"apple": ["red"], "House": ["red"]}, [("apple", "above", "House")])
    assert [entity.attributes[0].at for entity in found.entities] == [2, 20]
    assert found == parse(prompt)


def test_what_cannot_be_read_is_refused():
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="the prompt is empty"):
            parse(empty)
    for nothing in ("noto style", "on a blue background"):
        with pytest.raises(ValueError, match=r"no entity was found.*parse\(prompt, names\)"):
            parse(nothing)
    with pytest.raises(ValueError, match="no entity was found"):
        parse("a bicycle", NAMES)
    with pytest.raises(ValueError, match="'dog' does not occur"):
        constraints("a cat", ["dog"])
    with pytest.raises(ValueError, match="none of the entities"):
        constraints("a cat", ["cat"], [("cat", "above", "dog")])
    with pytest.raises(ValueError, match="expected a kind of"):
        constraints("a cat and dog", ["cat", "dog"], [("cat", "near", "dog")])
    with pytest.raises(ValueError, match="does not stand there"):
        replace(parse("a cat"), prompt="the cat")
    with pytest.raises(ValueError, match="terms"):
        compose.Align(("presence",))


def t5():
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    pieces += [(piece, -1.0) for piece in ("▁a", "▁red", "▁app", "le", "▁and", "▁above")]
    return T5TokenizerFast(vocab=pieces + [(letter, -9.0) for letter in tiny.LETTERS], extra_ids=0)


def test_tokens_are_found_in_clip_and_t5():
    prompt = "a red apple and apple"
    (first, second), clip = parse(prompt).entities, tiny.tokenizer()
    assert positions(t5(), prompt, first.name) == (2, 3)
    assert positions(t5(), prompt, second.name) == (5, 6)
    assert positions(t5(), prompt, first.attributes[0]) == (1,)
    assert positions(clip, prompt, first.name) == (5, 6, 7, 8, 9)  # a letter a token, after the start token
    assert positions(clip, prompt.upper(), first.name) == (5, 6, 7, 8, 9)
    with pytest.raises(ValueError, match=r"no token belongs to .*<\|startoftext\|>"):
        positions(clip, long := "a red apple and a green pear", parse(long).entities[1].name)  # cut off at 16 tokens
    with pytest.raises(ValueError, match="fast tokenizer"):
        positions(object(), prompt, first.name)


def test_streams_follow_one_another():
    one, two = streams((tiny.tokenizer(), t5()), 40)
    text = "a red apple"
    assert (one.kept(text), two.kept(text)) == (slice(1, 15), slice(16, 39))
    assert (one.kept(text, False), two.kept(text, False)) == (slice(1, 10), slice(16, 20))  # its words alone
    entity = parse(text).entities[0]
    assert two.positions("a red apple", entity.name) == (18, 19)
    with pytest.raises(ValueError, match="max_sequence_length"):
        streams(tiny.tokenizer(), 8)[0].positions("a red apple", entity.name)
    with pytest.raises(ValueError, match="too few"):
        streams((tiny.tokenizer(), t5()), 16)
