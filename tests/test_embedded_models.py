"""The models that ship, and the tools that made them."""

from __future__ import annotations

import hashlib
import importlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from fakes import SCRIPTED_TOKENS, ScriptedEngine, bigrams, frame
from harness import EXAMPLES, REPOSITORY, example, example_names, final_texts, of_type, run_service
from pypinyin import load_phrases_dict

from voice.models import embedded
from voice.models.language_model import ROOT, LanguageModel
from voice.models.loader import load_model
from voice.places import EMBEDDED
from voice.recognition.cif import initial_state, integrate
from voice.recognition.engine import ChunkPreset
from voice.recognition.search import TokenSearch
from voice.recognition.streaming import StreamingRecognizer
from voice.recognition.torch_engine import TorchEngine
from voice.transcript import Token

MODELS = ("asr", "punctuation", "emotion", "speaker")
TOOLS = REPOSITORY / "tools" / "embedded_models"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Imports a script of tools/embedded_models."""
    monkeypatch.syspath_prepend(str(TOOLS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(TOOLS)):
            del sys.modules[name]


def test_all_ship_with_their_sums_and_cards_in_less_than_64_mib() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 64 * 2**20
    for name in MODELS:
        listed = dict(reversed(line.split("  ")) for line in (EMBEDDED / name / "SHA256SUMS").read_text().splitlines())
        assert set(listed) == {path.name for path in (EMBEDDED / name).iterdir()} - {"SHA256SUMS", "MODEL_CARD.md", "onnx"}
        for file, digest in listed.items():
            assert hashlib.sha256((EMBEDDED / name / file).read_bytes()).hexdigest() == digest
        card = (EMBEDDED / name / "MODEL_CARD.md").read_text(encoding="utf-8")
        assert "<!-- table: " in card
        assert "| " in card.split("<!-- table: ")[1], "the table was not filled in: run tools/embedded_models/evaluate.py"


def test_the_warning_of_the_embedded_model_says_what_its_card_measured() -> None:
    card = (EMBEDDED / "asr" / "MODEL_CARD.md").read_text(encoding="utf-8")
    table = card.split("<!-- table: streaming with second pass people -->")[1].split("<!-- end -->")[0]
    (clean,) = re.findall(r"^\| aishell \| ([0-9.]+) % ", table, re.MULTILINE)
    counts = re.findall(r" ([0-9]+) of ([0-9]+) \|$", card.split("<!-- table: human -->")[1].split("<!-- end -->")[0], re.MULTILINE)
    wrong, said = (sum(int(number) for number in numbers) for numbers in zip(*counts, strict=True))
    for rate in (float(clean) / 100, wrong / said):
        assert f" about {round(10 * rate)} of 10 characters wrong" in embedded.EXPECTATION


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sliced", "streaming"])
@pytest.mark.parametrize("name", example_names())
def test_all_three_at_work(mode: str, name: str) -> None:
    result = run_service(mode, "--input", str(EXAMPLES / f"{name}.wav"))
    finals = of_type(result.events, "final")
    assert final_texts(result.events) == list(example(name)[1])
    for final, said in zip(finals, example(name)[1], strict=True):
        assert final["text"] == said + ("？" if "怎么样" in said else "。")
        assert final["emotion"] is not None
    assert len(of_type(result.events, "emotion")) == len(finals)
    assert of_type(result.events, "error_event") == []


def test_the_speaker_model_is_trained_on_what_its_class_computes(tool) -> None:
    """Filterbanks, and the head that is set by hand: of the training and of FunASR's class."""
    from funasr.models.campplus.utils import extract_feature

    training = tool("train_speakers")
    samples = torch.from_numpy(example("temperature")[0].astype(np.float32))
    theirs, _, _ = extract_feature([samples])
    assert torch.allclose(training.fbank_of(samples[None]), theirs, atol=1e-3)
    model = load_model(EMBEDDED / "speaker", "CAMPPlus", "cpu").module
    with torch.no_grad():
        assert torch.allclose(model.head(theirs.transpose(1, 2)), training.head_output(theirs), atol=1e-3)


def test_no_speaker_of_a_figure_was_trained_on(tool) -> None:
    training = tool("train_speakers")
    clips = [np.zeros(400, np.float32)]
    classes = training.training_classes(dict.fromkeys((*training.TEST, *training.DEVELOPMENT, "student_0025"), clips))
    assert {name.rpartition("-")[0] for name in classes} == {"student_0025"}
    assert len(classes) == len(training.SPEEDS)
    assert not set(training.TEST) & set(training.DEVELOPMENT)


def test_features_for_training_are_those_the_service_computes(tool) -> None:
    fbank = tool("fbank")
    samples = example("temperature")[0].astype(np.float32) * 32768
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither, options.frame_opts.window_type = 16_000, 0, "hamming"
    options.mel_opts.num_bins, options.energy_floor = 80, 0
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(16_000, samples.tolist())
    bank.input_finished()
    expected = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
    np.testing.assert_allclose(fbank.fbank(samples), expected, atol=2e-3)


def test_low_frame_rate_stacks_seven_frames_every_six(tool) -> None:
    frames = np.arange(13, dtype=np.float32)[:, None].repeat(80, axis=1)
    stacked = tool("fbank").low_frame_rate(frames)
    assert stacked.shape == (3, 560)
    assert stacked[:, ::80].tolist() == [[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9], [9, 10, 11, 12, 12, 12, 12]]


@pytest.mark.parametrize(("pair", "preset"), [(0, ChunkPreset(0, 8, 4, 4, 1)), (1, ChunkPreset(0, 10, 5, 4, 1))])
@pytest.mark.parametrize("name", ["air_conditioner", "two_utterances"])
@torch.inference_mode()
def test_training_lays_chunks_out_as_streaming_inference_does(tool, pair: int, preset: ChunkPreset, name: str) -> None:
    model = load_model(EMBEDDED / "asr", "ParaformerStreaming", "cpu")
    engine, module = TorchEngine(model), model.module
    stream, settings = engine.create_stream(preset), engine.cif
    features = stream._features(example(name)[0], is_final=True)
    features = features[:, : features.shape[1] // preset.chunk * preset.chunk]
    layout = tool("chunk_layout").StreamingLayout(module.encoder.overlap_chunk_cls)
    layout.gen_chunk_mask(torch.tensor([features.shape[1]]), pair)
    period, padding = layout.chunk_size_pad_shift_cur, layout.shfit_fsmn

    state, encoded, embeddings, logits = initial_state(settings), [], [], []
    firings = torch.zeros(1, int(layout.x_len_chunk[0]), dtype=torch.int32)
    for number, piece in enumerate([*features.split(preset.chunk, dim=1), None]):
        chunk = stream.encode_context() if piece is None else stream._encode_new(piece.clone(), stream._caches)
        rows = range(preset.right if piece is None else preset.chunk)
        fired, state = integrate(chunk, rows, state, settings, is_final=False)
        encoded.append(torch.from_numpy(chunk.hidden))
        if fired:
            embeddings.append(torch.from_numpy(np.stack([firing.embedding for firing in fired])))
            logits.append(module.decoder.forward_chunk(encoded[-1][None], embeddings[-1][None], stream._caches.decoder)[0])
            firings[0, number * period + padding] = len(fired)

    module.encoder.overlap_chunk_cls, module.encoder.embed = layout, module.encoder.embed._encoder
    laid_out, lengths, _ = module.encoder(features.clone(), torch.tensor([features.shape[1]]), ind=pair)
    for number, expected in enumerate(encoded):
        found = laid_out[0, number * period + padding : (number + 1) * period]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    num_tokens = firings.sum(1)
    mask = layout.token_mask(firings, num_tokens)
    found, _ = module.decoder(laid_out, lengths, torch.cat(embeddings)[None], num_tokens, mask)
    torch.testing.assert_close(found[0], torch.cat(logits), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("snr_db", [20, 10, 0])
def test_noise_is_added_at_the_ratio_asked_for(tool, snr_db: int) -> None:
    augment = tool("augment")
    rng = np.random.default_rng(0)
    speech = np.concatenate((np.zeros(8_000), 3_000 * rng.standard_normal(16_000), np.zeros(8_000))).astype(np.float32)
    noise = augment.make_noise("pink", len(speech), rng, [], [])
    added = augment.at_snr(speech, noise, snr_db) - speech
    measured = 10 * np.log10(np.mean(speech[8_000:24_000] ** 2) / np.mean(added**2))
    assert measured == pytest.approx(snr_db, abs=0.3)


def test_recorded_noise_is_heard_from_any_moment_and_as_long_as_the_speech(tool) -> None:
    recorded = [np.arange(1, 501, dtype=np.int16)]
    noise = tool("augment").make_noise("recorded", 1_200, np.random.default_rng(1), [], recorded)
    assert noise.shape == (1_200,)
    assert set(np.diff(noise)) <= {1.0, -499.0}
    assert noise[0] != 1


def test_a_hesitation_falls_where_a_clip_is_quietest(tool) -> None:
    loud = np.random.default_rng(0).choice([-5_000, 5_000], 16_000)
    loud[7_600:8_600] = 0
    clip = loud.astype(np.int16)
    longer = tool("augment").hesitant(clip, np.random.default_rng(0))
    pause = len(longer) - len(clip)
    assert 1_600 <= pause <= 11_200
    silent = np.flatnonzero(np.abs(longer) < 1e-6)
    assert np.all((silent > 7_000) & (silent < 9_200 + pause))
    assert np.array_equal(longer[:7_000], clip[:7_000])
    assert np.array_equal(longer[-6_000:], clip[-6_000:])
    short = clip[:3_000]
    assert tool("augment").hesitant(short, np.random.default_rng(0)) is short


def test_a_shard_is_read_as_it_was_written(tool, tmp_path: Path) -> None:
    shards = tool("shards")
    clips = [np.arange(-5, 5, dtype=np.int16), np.array([0.0, 0.5, -1.0])]
    shards.write_shard(tmp_path / "a" / "b-000.npz", [{"text": "一"}, {"text": "二"}], clips)
    index, read = shards.read_shard(tmp_path / "a" / "b-000.npz")
    assert index == [{"text": "一", "samples": 10}, {"text": "二", "samples": 3}]
    assert np.array_equal(read[0], clips[0])
    assert read[1].tolist() == [0, 11468, -22936]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b-000.npz"]


def test_silence_around_a_clip_is_cut_off(tool) -> None:
    audio = np.concatenate([np.zeros(8_000), np.sin(np.arange(4_000)), np.zeros(8_000)])
    kept = tool("shards").trimmed(audio)
    faint = np.concatenate([np.zeros(8_000), 0.05 * np.sin(np.arange(4_000)), audio[8_000:]])
    assert len(tool("shards").trimmed(faint)) >= len(kept) + 3_500, "the beginning of a word may be faint"
    assert len(tool("shards").trimmed(faint, share=0.2)) == pytest.approx(len(kept), abs=400)
    assert 4_000 + 2 * 640 <= len(kept) <= 4_000 + 2 * (640 + 400)
    assert np.array_equal(tool("shards").trimmed(audio[:300]), audio[:300])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1, "一"),
        (10, "十"),
        (12, "十二"),
        (20, "二十"),
        (101, "一百零一"),
        (112, "一百一十二"),
        (250, "两百五十"),
        (2_002, "两千零二"),
        (10_010, "一万零一十"),
        (25_000, "两万五千"),
        (120_000, "十二万"),
        (99_999_999, "九千九百九十九万九千九百九十九"),
    ],
)
def test_numbers_are_written_as_they_are_said(tool, value: int, said: str) -> None:
    assert tool("commands").spoken(value) == said


def test_every_character_has_a_syllable_as_target_and_none_is_the_blank(tool) -> None:
    """The dictionary reads 个 in 这个 with a neutral tone, which is no reading of the character alone."""
    training = tool("train_recognition")
    load_phrases_dict({"银行": [["yín"], ["háng"]]})  # an earlier test of this process may have loaded the library without its phrases
    tokens = ["<blank>", "<s>", "</s>", *"这个行银安", "<unk>"]
    known = training.readings(tuple(tokens))
    assert training.sounds_of("这个", known) == ["zhe4", known["个"][0]]
    assert training.sounds_of("银行", known) == ["yin2", "hang2"]
    collate = training.Collator(tokens, np.zeros(560), np.ones(560))
    sounds = collate([training.Item(np.zeros((60, 80), np.float32), 0, 60, "这个银行安")], "cpu")[4]
    assert sounds.shape == (1, 5)
    assert training.syllables(tokens)[0] == training.sounds_of("安", known)[0], "the first syllable, whose id is next to the blank's"
    assert sounds.min() >= 1
    assert sounds.max() <= len(training.syllables(tokens))


def test_sentences_that_nobody_spoke_are_put_together_of_encodings_that_were(tool) -> None:
    language = tool("language")
    bank = language.SyllableBank()
    encoded = torch.arange(14.0)[:, None].repeat(1, 4)  # frame n is n
    alphas = torch.tensor([0, 0, 0.5, 0.5, 0, 0.7, 0.3, 0, 0, 0, 0, 0, 0, 1.0])
    bank.keep(encoded, alphas, torch.tensor([[10.0], [20.0], [30.0]]), [7, 5])
    first, second, end = bank.say([7, 5], random.Random(0))
    assert [each.embedding.item() for each in (first, second, end)] == [10, 20, 30]
    assert first.frames[:, 0].tolist() == [0, 1, 2, 3], "all that came before the first token fired"
    assert second.frames[:, 0].tolist() == [4, 5, 6]
    assert end.frames[:, 0].tolist() == [7, 8, 9, 10, 11, 12, 13]
    assert bank.say([7, 6], random.Random(0)) is None, "6 was never heard"
    batch = language.splice([([101, 102, 2], [first, second, end]), ([102, 2], [second, end])])
    assert batch.memory[1, :, 0].tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 0, 0, 0]
    assert batch.memory_lengths.tolist() == [14, 10]
    assert batch.tokens.tolist() == [[101, 102, 2], [102, 2, -1]]
    assert batch.fired_at.tolist() == [[3, 6, 13], [2, 9, 0]]


def test_a_token_that_nobody_spoke_sees_its_own_chunk_and_what_the_cache_holds(tool) -> None:
    language = tool("language")
    fired_at = torch.tensor([[2, 13, 25]])
    batch = language.SplicedBatch(torch.zeros(1, 40, 4), torch.tensor([40]), torch.zeros(1, 3, 4), fired_at, fired_at, torch.tensor([3]))

    class FromTheFirst:
        """The chunks begin with the first frame."""

        def randrange(self, _: int) -> int:
            return 0

    mask = language.chunk_mask(batch, 15, 10, FromTheFirst())
    seen = [row.nonzero()[:, 0] for row in mask[0]]
    assert [(int(each.min()), int(each.max())) for each in seen] == [(0, 14), (5, 24), (15, 34)]


def test_without_recorded_noises_features_are_not_made(tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool("features"), "WORKSPACE", tmp_path)
    with pytest.raises(SystemExit, match=r"train\.npz is missing: run people\.py first"):
        tool("features").recorded_noises("train")


def test_a_recording_that_says_more_than_its_label_is_known_by_its_length(tool) -> None:
    says_more = tool("shards").says_more
    assert says_more("想听歌曲", np.zeros(16_000 * 3))
    assert not says_more("想听歌曲", np.zeros(16_000 * 2))
    assert not says_more("淮海店", np.zeros(16_000 * 3)), "short names are read slowly"
    assert says_more("打开", np.zeros(16_000))


def test_every_template_can_be_filled(tool) -> None:
    commands, rng = tool("commands"), random.Random(0)
    said = [commands.command(rng) for _ in range(3_000)]
    assert not any("{" in text for text in said)
    assert {name for template in commands.TEMPLATES for name in commands.SLOT.findall(template)} <= {*commands.SLOTS, *commands.FILL}


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [("打开灯", "打开灯", 0), ("打开灯", "打灯", 1), ("打开灯", "大开的灯", 2), ("", "啊", 1), ("打开", "", 2), ("一二三", "二三一", 2)],
)
def test_character_errors(tool, reference: str, hypothesis: str, errors: int) -> None:
    assert tool("evaluate").character_errors(reference, hypothesis) == errors


def test_passages_carry_each_mark_behind_its_word(tool) -> None:
    punctuation = tool("train_punctuation")
    assert punctuation.parse("你好，用usb吗？") == [("你", 1), ("好", 2), ("用", 1), ("usb", 1), ("吗", 4)]
    assert tool("evaluate").marks_behind("你好，用usb吗？") == ["_", "，", "_", "_", "？"]


def test_held_out_sentences_are_the_same_for_everybody_and_no_fixed_command_is(tool) -> None:
    corpus, slots = tool("corpus"), tool("commands").SLOTS
    held_out = [text for text in (f"打开{a}的{b}。" for a in slots["room"] for b in slots["device"]) if corpus.is_held_out(text)]
    assert "打开厨房的风扇。" in held_out
    assert "打开客厅的灯。" not in held_out
    assert 0.01 < len(held_out) / 150 < 0.12
    assert all(corpus.is_held_out(corpus.without_marks(text)) for text in held_out), "marks change nothing"
    assert not any(corpus.is_held_out(text) for text in corpus.TEMPLATES if "{" not in text)


def test_lines_whose_marks_cannot_be_trusted_are_left_out(tool) -> None:
    punctuated = tool("corpus").punctuated
    assert punctuated("酒店很好!下次还来...") == "酒店很好。下次还来。"
    assert punctuated("“真的是这样吗？！”他问：“你是谁呀”") == "真的是这样吗？他问，你是谁呀。"
    assert punctuated("这一行没有任何标点符号也很长很长很长很长很长很长很长很长很长很长很长很长很长") is None


TEXTS = ["打开灯", "打开灯", "打开门", "关灯", "关上门", "他上门打开灯"]


def language_model(tool) -> tuple[object, LanguageModel, list[str]]:
    """Smoothed n-grams of TEXTS, and what the service reads of them."""
    ngrams = tool("ngrams")
    characters = sorted(set("".join(TEXTS)) | {"窗"})
    smoothed = ngrams.Smoothed(ngrams.continuations(ngrams.count(TEXTS)), characters)
    return smoothed, LanguageModel({**ngrams.automaton(smoothed, characters), "weight": np.array(1.0)}, characters), characters


def test_the_language_model_gives_every_character_its_share_whatever_was_before(tool) -> None:
    """A character that no text holds, too; and what the service computes is what was smoothed."""
    smoothed, model, characters = language_model(tool)
    for context in ("", "打", "打开", "窗", "窗窗", "灯打开", "^", "^打", "^打开", "开灯"):
        state = model.start if context.startswith("^") else ROOT
        for character in context.lstrip("^"):
            state = int(model.step([state], [characters.index(character)])[1][0])
        scores, _ = model.step([state] * len(characters), range(len(characters)))
        expected = [smoothed.probability(context[-2:], character) for character in characters]
        assert np.exp(scores) == pytest.approx(expected, rel=0.01)
        assert sum(expected) == pytest.approx(1)


def test_a_character_that_follows_many_is_likelier_behind_another_than_one_that_always_follows_the_same(tool) -> None:
    """开 was seen four times, always behind 打; 门 three times, behind 开 and 上."""
    smoothed, _, _ = language_model(tool)
    assert smoothed.probability("窗", "门") > smoothed.probability("窗", "开")
    assert smoothed.probability("打", "开") > 0.6


def test_what_begins_a_sentence_is_counted_as_often_as_it_does(tool) -> None:
    smoothed, _, _ = language_model(tool)
    assert smoothed.probability("^", "打") > smoothed.probability("^", "关") > smoothed.probability("^", "他")


def test_a_trigram_that_was_seen_once_is_left_out(tool) -> None:
    smoothed, _, _ = language_model(tool)
    assert "打开灯" in smoothed.own
    assert not {"打开门", "他上门", "^他上"} & set(smoothed.own)


@pytest.fixture
def ngrams(tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, over a workspace of few texts: each source the same two lines, and a dictionary of five words."""
    ngrams, corpus, shards = tool("ngrams"), tool("corpus"), tool("shards")
    dictionary = [("公园", 10_000), ("好吗", 100), ("我", 10_000), ("公式", 10_000), ("去你", 0)]
    monkeypatch.setattr(corpus, "dictionary", lambda: dictionary)
    monkeypatch.setattr(corpus, "is_held_out", lambda text: text == "你好")
    monkeypatch.setattr(corpus, "command", lambda rng: rng.choice(["你好。", "去公园。"]))
    monkeypatch.setattr(corpus, "digits", lambda _: "一二")
    monkeypatch.setattr(corpus, "characters", lambda: list("今天我们去公园好吗你说"))
    for module in (ngrams, corpus, shards):
        monkeypatch.setattr(module, "WORKSPACE", tmp_path)
    (tmp_path / "text").mkdir()
    for source in ("learners", "reviews", "news"):
        (tmp_path / "text" / f"{source}-train.txt").write_text("今天我们去公园，好吗？\n你说今天好吗？\n", encoding="utf8")
    shards.write_shard(
        tmp_path / "speech" / "test" / "held-out" / "kokoro-000.npz", [{"text": "今天我们去公园好吗"}], [np.ones(160, np.int16)]
    )
    return ngrams


def test_texts_commands_digits_and_words_are_counted_and_nothing_held_out(ngrams: ModuleType) -> None:
    found = Counter(ngrams.texts(random.Random(0)))
    assert found["你说今天好吗"] == 3
    assert found["今天我们去公园"] == 0, "a test sentence begins so"
    assert found["好吗"] == pytest.approx(3 + 100**0.75 * 0.03, abs=1), "too short to tell a sentence by, and a word"
    assert found["公园"] == pytest.approx(10_000**0.75 * 0.03, abs=1)
    assert found["去公园"] == pytest.approx(ngrams.NUM_COMMANDS / 2, rel=0.1)
    assert found["一二"] == ngrams.NUM_DIGITS
    assert not {"你好", "我", "公式", "去你"} & set(found), "held out, no word, of a character that is not known, never seen"


def test_calibration_takes_the_posteriors_of_the_tokens_that_the_language_model_chose(tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is right, and its posterior was low: the temperature that fits best makes it as high as can be."""
    calibrate = tool("calibrate")
    engine = ScriptedEngine(bigrams(SCRIPTED_TOKENS, {("二", "一"): -0.1}, alone=-30.0))
    recognizer = StreamingRecognizer(engine, ChunkPreset(0, 2, 0, encoder_look_back=0, decoder_look_back=0))

    def heard(_: object, per_kind: int, first: int) -> Iterator[tuple[str, list[Token]]]:
        assert (per_kind, first) == (1, calibrate.EVALUATED)
        for _ in range(5):
            stream = recognizer.create_stream(0)
            stream.accept(np.concatenate((frame(2), frame(4, second=1, gap=1.0))))
            yield "二一", list(stream.finish().tokens)

    monkeypatch.setattr(calibrate, "load_engine", lambda _: engine)
    monkeypatch.setattr(calibrate, "recognizers", lambda _: {"streaming": recognizer})
    monkeypatch.setattr(calibrate, "heard", heard)
    monkeypatch.setattr(TokenSearch, "_token", TokenSearch._token)
    assert calibrate.fit(Path(), 1) > 1.5


def test_calibration_divides_the_weight_of_the_language_model(tool, tmp_path: Path) -> None:
    calibrate, path = tool("calibrate"), tmp_path / "language_model.npz"
    np.savez_compressed(path, weight=np.array(7.0), start=np.array(3))
    for _ in range(2):
        calibrate.weigh(path, 0.8)
        with np.load(path) as arrays:
            assert (float(arrays["weight"]), int(arrays["start"])) == (pytest.approx(0.5), 3)


def test_of_a_batch_for_emotion_half_is_acted_and_a_sixth_is_read(tool) -> None:
    train_emotion = tool("train_emotion")
    step = np.repeat(np.array([1, -1], np.int16), 40_000)
    styles, read = [("surprised", step)], [("neutral", step)]
    acted = {"angry": [step], "sad": [step], "other": [step]}
    audio, targets = train_emotion.batch_of(styles, acted, read, np.random.default_rng(0))
    counted = Counter(list(train_emotion.LABELS)[target] for target in targets.tolist())
    assert (len(targets), counted["surprised"], counted["neutral"]) == (36, 12, 6)
    assert counted["angry"] + counted["sad"] + counted["other"] == 18
    assert audio.shape[0] == 36
    assert 1.2 * 16_000 <= audio.shape[1] <= 3.6 * 16_000


def test_people_who_read_are_neutral_and_all_their_shards_are_heard(tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_emotion, shards = tool("train_emotion"), tool("shards")
    monkeypatch.setattr(train_emotion, "WORKSPACE", tmp_path)
    monkeypatch.setattr(train_emotion, "READERS", {"aishell": 4})
    for part in range(2):
        clips = [np.full(10, 100 * part + number, np.int16) for number in range(5)]
        shards.write_shard(tmp_path / "speech" / "train" / f"aishell-000{part}.npz", [{"text": "字"}] * 5, clips)
    found = train_emotion.read_readers(np.random.default_rng(0))
    assert [label for label, _ in found] == ["neutral"] * 4
    assert sorted(int(clip[0]) // 100 for _, clip in found) == [0, 0, 1, 1]
    assert len({int(clip[0]) for _, clip in found}) == 4, "none twice"
