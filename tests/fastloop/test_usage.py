"""Words that cannot be read are answered with what was likely meant; help explains every part."""

import re
import shlex
from pathlib import Path

import pytest

from fastloop import cli, schemas, usage


def refused(name, word):
    with pytest.raises(ValueError, match=re.escape(repr(word))) as caught:
        usage.composed(name, [word])
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [
        ("eval", "--episodes=3", "episodes=3"),
        ("eval", "-episodes=3", "episodes=3"),
        ("eval", "--episodes", "episodes=..."),
        ("eval", "policy", "policy=..."),
        ("eval", "dp_pusht", "policy=dp_pusht"),
        ("eval", "x.ckpt", "episodes=100"),
        ("eval", "a b=3", "episodes=100"),
        ("info", "x.ckpt", "ckpt=x.ckpt"),
        ("info", "my (1).ckpt", "'ckpt=\"my (1).ckpt\"'"),
        ("train", "x.hdf5", "dataset.path=x.hdf5"),
        ("record", "out", "out=..."),
        ("bench_shape", "--policy.checkpoint=~", "'policy.checkpoint=\"~\"'"),
    ],
)
def test_a_word_that_is_no_setting(name, word, meant):
    told = refused(name, word)
    assert told == f"{word!r} is no setting: settings are name=value, such as {meant}"


@pytest.mark.parametrize("values", ["1,2", "choice(1,2)", "range(3)"])
def test_one_value_is_taken(values):
    with pytest.raises(ValueError, match=r"it names several values, and one is taken"):
        usage.composed("eval", [f"episodes={values}"])


@pytest.mark.parametrize("value", ["/a b (1).ckpt", "a=b", "1,2", "é", 'say "a"', "it's", "a#b"])
def test_a_value_with_special_characters_is_shown_in_quotes(value):
    told = refused("eval", f"policy.checkpoint={value}")
    spelled = re.search(r"stands in quotes, (.*); a list is \[a,b\], a map \{a: 1\}", told)[1]
    (word,) = shlex.split(spelled)
    assert usage.composed("eval", [word]).policy.checkpoint == value


@pytest.mark.parametrize("file", ["x.ckpt", "my (1).ckpt"])
def test_a_tilde_is_no_home(file):
    told = refused("eval", f"policy.checkpoint=~/{file}")
    (word,) = shlex.split(told.partition("; say ")[2])
    assert usage.composed("eval", [word]).policy.checkpoint == str(Path.home() / file)


def test_what_hydra_reads_is_left_to_it():
    words = ["~arms.bac", "+arms={mine: {accel: {kind: uniform}}}", "policy.checkpoint='~/x'"]
    config = usage.composed("bench", words)
    assert "bac" not in config.arms
    assert config.arms.mine.accel.kind == "uniform"
    assert config.policy.checkpoint == "~/x"


def test_the_nearest_name_is_asked_for():
    assert usage.near("accel.budgt", ["budget", "union"]) == "\ndid you mean accel.budget?"
    assert usage.near("zzz", ["budget", "union"]) == ""


@pytest.mark.parametrize("name", schemas.SCHEMAS | schemas.TASK_SCHEMAS)
def test_every_part_is_explained_once(name):
    told = usage.of_verb(name, "", name, [])
    docs = [line for line in told.partition("= one of")[0].splitlines() if line]
    heads = [line for line in docs if re.match(r"[a-z_.NAME, ]+: [A-Z]", line)]
    assert len(heads) == len(set(heads))
    assert "Raises:" not in told
    assert told.count("Attributes:") <= 1


def test_the_settings_of_parts_are_explained_under_their_names():
    told = usage.of_verb("eval", "", "eval", [])
    for head, attribute in [
        ("policy: Which weights decide", "checkpoint: a shipped policy's name"),
        ("accel: One block cache.", "budget: S, updates of each branch"),
        ("accel.predictor: How branches", "damping: 0 to 1"),
        ("clock: What the world does", "scale: of the latencies"),
    ]:
        assert re.search(rf"^{head}.*?\n    {attribute}", told, re.MULTILINE | re.DOTALL), head
    assert "\ntrain, pretrain: " in usage.of_verb("train", "", "train", [])
    assert "\narms.NAME: One way to decide sooner.\n" in usage.of_verb("", "", "bench", [])


def test_a_task_is_told_in_one_sentence():
    told = usage.of_tasks("bench", cli.VERBS["bench"], cli.TASKS["bench"])
    assert re.search(r"^  decode +Every way to write .* time, error$", told, re.MULTILINE)
