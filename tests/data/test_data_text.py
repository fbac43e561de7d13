"""Text: splits, crops, scores, and the files it comes from."""

import math

import data_files
import numpy as np
import pytest
from data_files import source

from fflearn.data import TextData, fetch, load, names, official
from fflearn.data import text as text_module
from fflearn.data.text import from_text
from fflearn.errors import DataError

WORDS = "the quick brown fox jumps over the lazy dog\n"
IDS = np.arange(100) % 7


def data(n_test=23, length=5) -> TextData:
    return TextData("toy", IDS, np.arange(n_test) % 7, "abcdefg", length)


# ---- the parts ------------------------------------------------------------------------------------


def test_the_end_of_a_text_is_its_test_part():
    toy = from_text("toy", WORDS * 10, length=16)
    n = len(WORDS) * 9
    assert toy.vocabulary == "".join(sorted(set(WORDS))) and toy.classes[0] == "\n"
    assert toy.decode(toy.ids_train) + toy.decode(toy.ids_test) == WORDS * 10
    assert len(toy.ids_train) == n and toy.in_shape == (16,) and toy.n_classes == 28
    assert (toy.n_train, toy.test_n) == (n // 16, len(WORDS) - 1)
    np.testing.assert_array_equal(toy.encode(WORDS), toy.ids_train[: len(WORDS)])
    assert repr(toy) == "TextData('toy', 396 train, 44 test characters, length=16, n_classes=28)"


def test_validation_is_the_end_of_the_training_part():
    whole = data()
    part = whole.split_validation()
    np.testing.assert_array_equal(part.ids_train, IDS[:90])
    np.testing.assert_array_equal(part.ids_test, IDS[90:])
    assert part.name == "toy-validation" and "last tenth of the training part" in part.notes[-1]
    assert (part.vocabulary, part.length) == (whole.vocabulary, whole.length)
    assert part.sha256 != whole.sha256


def test_the_digest_names_all_that_matters():
    same, base = data(), data()
    assert same.sha256 == base.sha256 and len(base.sha256) == 64
    others = [
        data(n_test=24),
        data(length=6),
        base.at_length(4),
        TextData("toy", IDS, base.ids_test, "abcdefh", 5),
        TextData("toy", IDS[::-1], base.ids_test, "abcdefg", 5),
    ]
    assert len({base.sha256, *(o.sha256 for o in others)}) == 6
    assert base.at_length(4).in_shape == (4,)


def test_characters_beyond_the_first_plane_are_one_character():
    toy = from_text("toy", "aé\U0001f600" * 20, length=4)
    assert toy.vocabulary == "aé\U0001f600"
    assert toy.decode(toy.ids_train[:3]) == "aé\U0001f600"


# ---- crops ----------------------------------------------------------------------------------------


def test_a_crop_is_followed_by_its_own_next_characters():
    batch = data().batches(6, seed=0).batch(3)
    assert batch.x.shape == batch.y.shape == (6, 5)
    assert batch.x.dtype == np.float32 and batch.y.dtype == np.int64
    np.testing.assert_array_equal(batch.y, (batch.x + 1) % 7)
    assert batch.weight is None and not batch.side


def test_crops_are_a_function_of_seed_and_step():
    again = [data().batches(4, seed=1).batch(step).x for step in (5, 0, 5)]
    assert again[0].tobytes() == again[2].tobytes() != again[1].tobytes()
    assert data().batches(4, seed=2).batch(5).x.tobytes() != again[0].tobytes()


def test_crops_begin_everywhere_and_only_where_they_fit():
    numbered = TextData("n", np.arange(12), np.arange(12), "abcdefghijkl", 5)
    batches = numbered.batches(50, seed=0)
    starts = {int(s) for step in range(20) for s in batches.batch(step).x[:, 0]}
    assert starts == set(range(7))  # the last one ends before the last character


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 20), (2, 10), (3, 7), (20, 1), (50, 1)])
def test_an_epoch_reads_as_much_as_there_is(batch_size, steps):
    batches = data().batches(batch_size, seed=0)
    assert (batches.steps_per_epoch, batches.batch_size) == (steps, batch_size)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "4", None, True])
def test_a_bad_batch_size_is_refused(wrong):
    with pytest.raises(DataError, match="batch_size of 1 or more"):
        data().batches(wrong, 0)


def test_a_negative_step_is_refused():
    with pytest.raises(DataError, match="got -1"):
        data().batches(4, 0).batch(-1)


# ---- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_test", [6, 7, 10, 11, 12, 23])
@pytest.mark.parametrize("at_once", [5, 10, 1 << 14])
def test_every_character_of_the_test_part_counts_once(monkeypatch, n_test, at_once):
    monkeypatch.setattr(text_module, "_AT_ONCE", at_once)
    toy = TextData("n", IDS, np.arange(n_test) % 7, "abcdefg", 5)
    rng, table = np.random.default_rng(0), {}

    def predict(x, side=None):
        # Logits that depend on the place in the text alone: the same wherever a window begins.
        assert x.shape[1:] == (5,) and x.dtype == np.float32 and x.size <= max(5, at_once)
        return np.stack([[table[int(i)] for i in row] for row in x])

    table.update({i: rng.normal(size=7) for i in range(7)})
    x, y = np.arange(n_test - 1) % 7, np.arange(1, n_test) % 7
    z = np.stack([table[i] for i in x])
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    found = toy.score(predict)
    loss = -logp[np.arange(len(y)), y].mean()
    assert list(found) == ["accuracy", "loss", "perplexity"]
    assert found["accuracy"] == pytest.approx((z.argmax(1) == y).mean(), rel=1e-12)
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-12)
    assert {type(v) for v in found.values()} == {float}


def test_windows_follow_each_other():
    seen = []
    toy = TextData("n", np.arange(14), np.arange(14), "abcdefghijklmn", 5)

    def predict(x, side=None):
        seen.extend(x.tolist())
        return np.zeros((*x.shape, 14))

    assert toy.score(predict)["perplexity"] == pytest.approx(14)
    assert seen == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [8, 9, 10, 11, 12]]


def test_perfect_and_hopeless_predictions():
    def sure(x, side=None):
        return 50.0 * np.eye(7, dtype=np.float32)[(x.astype(int) + 1) % 7]

    assert data().score(sure)["accuracy"] == 1.0
    assert data().score(sure)["perplexity"] == pytest.approx(1.0)
    worst = data().score(lambda x, side=None: -1e4 * sure(x))
    assert worst["accuracy"] == 0 and worst["perplexity"] == math.inf


# ---- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["story.txt", "STORY.TXT"])
def test_a_text_file_of_the_user(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(("\ufeff" + WORDS * 100).replace("\n", "\r\n").encode())
    story = load(path)
    assert isinstance(story, TextData) and load(story) is story
    assert story.name == path.stem and story.length == 128
    assert story.decode(story.ids_train[: len(WORDS)]) == WORDS


def test_a_file_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "photo.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 1000)
    with pytest.raises(DataError, match=r"UTF-8.*photo\.txt"):
        load(path)
    path.write_text("too short")
    with pytest.raises(DataError, match=r"more than length = 128 .* smaller length"):
        load(path)


@pytest.mark.parametrize("folder", ["shakespeare", "."])
def test_shakespeare_from_the_users_folder(user_folder, folder):
    (user_folder / folder).mkdir(exist_ok=True)
    (user_folder / folder / "input.txt").write_text(WORDS * 100)
    with pytest.warns(UserWarning, match=r"shakespeare: input\.txt in FFLEARN_DATA has md5"):
        found = load("shakespeare", download=False)
    assert found.name == "shakespeare" and "6fb458f1232090904fb40fe944165e91" in found.notes[0]
    assert "shakespeare" in names()


def test_shakespeare_is_downloaded_once(server, cache, monkeypatch):
    content = {"input.txt": (WORDS * 100).encode()}
    monkeypatch.setattr(data_files, "FILES", content)
    fake = source(server, "wrong_bytes", "good", files=content)._replace(name="shakespeare")
    monkeypatch.setitem(official.SOURCES, "shakespeare", fake)
    first = load("shakespeare")
    assert first.notes == () and (cache / "shakespeare" / "input.txt").is_file()
    assert load("shakespeare", download=False).sha256 == first.sha256
    assert server.asked == ["wrong_bytes", "good"]


def test_shakespeare_is_told_where_to_get_it(cache):
    with pytest.raises(DataError, match=r"raw\.githubusercontent\.com/karpathy/char-rnn/.*input"):
        load("shakespeare", download=False)
    assert fetch.SOURCES["shakespeare"].files[0].name == "input.txt"


# ---- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"length": 0}, "positive length; got 0"),
        ({"length": True}, "positive length; got True"),
        ({"length": 23}, r"more than length = 23 characters.*\(23,\) in ids_test of toy"),
        ({"ids_train": IDS[:5]}, r"\(5,\) in ids_train of toy"),
        ({"ids_train": IDS.reshape(4, 25)}, r"\(4, 25\) in ids_train"),
        ({"ids_test": IDS + 1}, r"ids in 0 \.\. 6; got 1 \.\. 7 in ids_test"),
        ({"ids_train": IDS - 1}, r"got -1 \.\. 5 in ids_train"),
        ({"vocabulary": "abcdefa"}, "each once; got 'abcdefa' in toy"),
        ({"vocabulary": "a"}, "at least two characters"),
    ],
)
def test_what_cannot_be_learned_from_is_told(change, told):
    given = {"ids_train": IDS, "ids_test": IDS[:23], "vocabulary": "abcdefg", "length": 5}
    with pytest.raises(DataError, match=told):
        TextData(name="toy", **(given | change))


def test_an_unknown_character_is_told():
    with pytest.raises(DataError, match="characters of toy, which are 'abcdefg'; got 'x'"):
        data().encode("abx")
