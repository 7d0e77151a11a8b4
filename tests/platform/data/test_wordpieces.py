import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from farreach.data import wordpieces
from farreach.data.wordpieces import WordPieces, normalised, one_thread, trained
from farreach.errors import DataError

WORDS = "the quick brown fox jumps over the lazy dog and the cat, again and again: naïve café 漢字"
TEXTS = [WORDS, "The Fox. THE DOG!", "cats and dogs and foxes", "jumping over lazier dogs"] * 5
# In the manner of bert-base-uncased: unused tokens lie before and between the special ones.
LINES = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused2]"]
LINES += ["!", ",", "[", "]", "un", "##aff", "##able", "hello", "world", "mask", "漢", "a", "##b"]


def vocabulary(folder, lines=LINES):
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_a_vocabulary_of_lines_cuts_as_bert_uncased(tmp_path):
    words = WordPieces.open(vocabulary(tmp_path) / "vocab.txt")
    (ids,) = words.encode(["Héllo, UNAFFABLE\tworld!漢a ab abc"])
    assert ids.dtype == np.int32
    expected = ["hello", ",", "un", "##aff", "##able", "world", "!", "漢", "a", "a", "##b", "[UNK]"]
    assert words.tokens(ids) == expected
    assert ids.tolist()[:5] == [15, 9, 12, 13, 14]
    assert words.text(ids[:6]) == "hello, unaffable world"


def test_special_tokens_are_found_and_unused_ones_passed_over(tmp_path):
    words = WordPieces.open(vocabulary(tmp_path))
    assert (words.pad, words.unknown, words.cls, words.sep, words.mask) == (0, 3, 4, 5, 6)
    assert words.special == {0, 3, 4, 5, 6}
    assert (words.size, words.first_word) == (21, 8)


def test_what_looks_like_a_special_token_in_a_text_is_text(tmp_path):
    words = WordPieces.open(vocabulary(tmp_path))
    assert words.tokens(words.encode(["a [MASK]"])[0]) == ["a", "[", "mask", "]"]


def test_a_cased_vocabulary_says_so_beside(tmp_path):
    vocabulary(tmp_path, [*LINES, "World"])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    words = WordPieces.open(tmp_path)
    assert words.tokens(words.encode(["World world"])[0]) == ["World", "world"]


def test_texts_are_never_cut_short_nor_filled_up(tmp_path):
    words = WordPieces.open(vocabulary(tmp_path))
    words.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "short.json"))
    short = WordPieces.open(tmp_path / "short.json")
    assert [len(ids) for ids in short.encode(["a " * 9, "a", ""])] == [9, 1, 0]
    assert short.fingerprint == words.fingerprint


@pytest.mark.parametrize("lower", [True, False])
def test_runs_that_are_looked_up_give_what_whole_texts_give(lower):
    words = trained(TEXTS, 120, lower=lower)
    rng = np.random.default_rng(0)
    characters = [chr(c) for c in range(0x180)] + list("Σσςİßﬁ漢字かな가\u0301\u0338\u200b\u2028😀")
    characters += list(" .,=<>[]#thequickfoxdog") * 9
    texts = ["".join(rng.choice(characters, rng.integers(0, 40))) for _ in range(3000)]
    tokenizer = Tokenizer.from_str(pickle.loads(pickle.dumps(words))._content)
    tokenizer.encode_special_tokens = True
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in words.encode(texts)] == expected
    assert [ids.tolist() for ids in words.encode(texts)] == expected


def test_what_is_looked_up_is_bounded(monkeypatch):
    monkeypatch.setattr(wordpieces, "MOST_KNOWN", 10)
    words = trained(TEXTS, 120)
    expected = [ids.tolist() for ids in trained(TEXTS, 120).encode(TEXTS)]
    for _ in range(3):
        assert [ids.tolist() for ids in words.encode(TEXTS)] == expected
        assert len(words._known) <= 10


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_trained_vocabulary_is_saved_and_opened_as_it_was(tmp_path, kind):
    words = trained(TEXTS, 130, kind)
    assert words.tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (words.pad, words.unknown, words.cls, words.sep, words.mask) == (0, 1, 2, 3, 4)
    assert words.first_word == 5
    assert 40 < words.size <= 130
    words.save(tmp_path / "words")
    for other in (WordPieces.open(tmp_path / "words"), pickle.loads(pickle.dumps(words))):
        assert other.fingerprint == words.fingerprint
        assert [i.tolist() for i in other.encode(TEXTS)] == [
            i.tolist() for i in words.encode(TEXTS)
        ]
    (ids,) = words.encode(["The quick dog"])
    assert words.text(ids) == "the quick dog"
    assert words.unknown not in ids
    assert words.unknown in words.encode(["Ω"])[0]


def test_a_saved_wordpiece_has_its_lines_too(tmp_path):
    words = trained(TEXTS, 90)
    words.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    assert WordPieces.open(tmp_path).fingerprint == words.fingerprint


def test_others_put_special_tokens_around_a_text(tmp_path):
    trained(TEXTS, 90).save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("the dog").tokens == ["[CLS]", "the", "dog", "[SEP]"]


def test_case_is_kept_where_asked():
    words = trained(["Aa Aa café café"], 20, lower=False)
    assert words.text(words.encode(["Aa café"])[0]) == "Aa café"
    assert "á" not in "".join(words.tokens(range(words.size)))


def test_training_wordpiece_again_gives_the_same_vocabulary():
    many = [f"{a}{b}{c} {c}{a}" for a in "abcdefg" for b in "hijklmn" for c in "opqrstu"]
    assert len({trained(many, 150).fingerprint for _ in range(4)}) == 1
    assert trained(iter(many), 150).fingerprint == trained(many[::-1], 150).fingerprint


def test_rare_characters_leave_room_for_words():
    texts = ["".join(chr(0x4E00 + i) for i in range(500)) + " hello hello"] * 3
    words = trained(texts, 100)
    assert words.size <= 100
    assert "hello" in words.tokens(range(words.size))


def unreadable(path):
    return path


def twice(path):
    return vocabulary(path, [*LINES, "hello"])


def no_mask(path):
    return vocabulary(path, [line for line in LINES if line != "[MASK]"])


def other_names(path):
    return vocabulary(path, ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "a"])


def broken(path):
    (path / "tokenizer.json").write_text('{"version": "1.0"')
    return path


def broken_settings(path):
    (path / "tokenizer_config.json").write_text("[1]")
    return vocabulary(path)


def no_special(path):
    vocabulary(path)
    WordPieces.open(path).save(path)
    content = (path / "tokenizer.json").read_text().replace("[SEP]", "[END]")
    (path / "tokenizer.json").write_text(content)
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unreadable, r"vocab\.txt: cannot be read: .*Give a folder with tokenizer\.json or"),
        (twice, r"vocab\.txt, line 16: 'hello' is there again in line 22\. Fetch"),
        (no_mask, r"vocab\.txt: has no token \[MASK\]\. Give the vocabulary of a masked"),
        (other_names, r"vocab\.txt: has no token \[PAD\]\."),
        (broken, r"tokenizer\.json: is no tokenizer of Hugging Face"),
        (broken_settings, r"tokenizer_config\.json: is no JSON object"),
        (no_special, r"tokenizer\.json: has no token \[SEP\] or </s>\."),
    ],
)
def test_faults_of_a_vocabulary_are_named(tmp_path, spoil, message):
    with pytest.raises(DataError, match=message):
        WordPieces.open(spoil(tmp_path))


@pytest.mark.parametrize(
    ("texts", "size", "kind", "message"),
    [
        ([], 90, "wordpiece", r"there are no words to learn a vocabulary from"),
        (["", " \n"], 90, "unigram", r"there are no words"),
        (TEXTS, 9, "wordpiece", r"a vocabulary of 9 tokens holds no words"),
        (TEXTS, 20, "unigram", r"cannot learn 20 tokens from these texts"),
    ],
)
def test_faults_of_training_are_named(texts, size, kind, message):
    with pytest.raises(DataError, match=message):
        trained(texts, size, kind)


def test_ids_of_another_vocabulary_are_refused(tmp_path):
    words = WordPieces.open(vocabulary(tmp_path))
    with pytest.raises(DataError, match="of 21 tokens has none with the id 21"):
        words.tokens(np.array([3, 21]))


@pytest.mark.parametrize("before", [None, "true"])
def test_threads_are_off_only_for_a_while(monkeypatch, before):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    with one_thread():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_a_process_that_has_encoded_forks_without_a_word():
    script = (
        "import os\n"
        "from farreach.data.wordpieces import trained\n"
        "words = trained(['a b c ab bc abc'] * 999, 20, 'unigram')\n"
        "words.encode(['a b c'] * 999)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(len(words.encode(['a b c'] * 999)) != 999)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("0", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00\x01\x07\x08\x0e\x1b\x1fb", "ab"),
        ("a\tb\nc\rd", "a\tb\nc\rd"),
        ("a\x0bb\x0cc\x85d", "a b c d"),
        ("\u2010 \u2011 \u2012 \u2013 \u2014 \u2015 \u2043", "- - - - - - -"),
        ("\u2212 \uff0d \u207b -", "- - - -"),
        ("co\u00adop", "coop"),
        ("\u201ca\u201d \u201eb\u201f", '"a" "b"'),
        ("\u2018a\u2019 \u201ab\u201b", "'a' 'b'"),
        ("l\u2019eau l\u055aeau l\ua78beau l\ua78ceau l\uff07eau", "l'eau l'eau l'eau l'eau l'eau"),
        ("\u0060a\u00b4", "'a'"),
        ("5\u2032 5\u2033 5\u2034 5\u2057", "5' 5'' 5''' 5''''"),
        ("5\u2035 5\u2036 5\u2037", "5' 5'' 5'''"),
        ("and so on\u2026", "and so on..."),
        ("1\u20442 1\u22152", "1/2 1/2"),
        ("~ \u02dc \u223c + \uff0b", "~ \u02dc \u223c + \uff0b"),
        ("Straße café 漢字 ', \"-/", "Straße café 漢字 ', \"-/"),
        ("", ""),
    ],
)
def test_characters_are_normalised_by_class(text, expected):
    assert normalised(text) == expected
    assert normalised(expected) == expected
