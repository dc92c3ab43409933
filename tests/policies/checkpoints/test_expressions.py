"""Configuration values: what published files compute is computed, everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.checkpoints.expressions import Config, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${eval:'${a}+${b}'}", 10),
        ("${eval: ${a} if ${yes} or ${no} else ${b} + ${a}}", 8),
        ("${eval: ${b} if ${no} else None}", None),
        ('${eval:\'500 if "${word}" == "mh" else 400\'}', 400),
        ("${deep.list[1]}", 20),
        ("${deep.up}", 8),
        ("${deep.self}", 10),
        ("${word}_${a}", "ph_8"),
        ("${eval:'int(${a} / 3)'}", 2),
    ],
)
def test_published_values_resolve(text: str, value: object) -> None:
    config = Config(
        {
            "a": 8,
            "b": 2,
            "yes": True,
            "no": False,
            "word": "ph",
            "asked": text,
            "deep": {"list": [10, 20], "up": "${..a}", "self": "${.list[0]}"},
        }
    )
    assert config.get("asked") == value


numbers = st.integers(-50, 50).map(str) | st.sampled_from(["True", "False", "1.5"])
arithmetic = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "<", "=="]), inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("(not {})".format, inner),
        st.builds("(-{})".format, inner),
    ),
    max_leaves=8,
)


@given(arithmetic)
def test_equals_python(text: str) -> None:
    assert evaluate(text) == eval(text)


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("__import__('os').system('touch {marker}')", "__import__('os').system"),
        ("open('{marker}', 'w')", "open"),
        ("().__class__.__bases__[0].__subclasses__()", "__subclasses__"),
        ("[x for x in (1, 2)]", "for x in"),
        ("(lambda: 1)()", "lambda"),
        ("9**9**9**9", "9 ** 9"),
        ("exec", "exec"),
        ("f'{{1}}'", "f'"),
        ("1 if print('{marker}') else 2", "print"),
        ("int.from_bytes(b'a')", "int.from_bytes"),
    ],
)
@pytest.mark.parametrize("place", ["asked", "elsewhere"])
def test_programs_are_refused_wherever_they_stand(tmp_path, expression, named, place) -> None:
    marker = tmp_path / "marker"
    text = "${eval:'" + expression.format(marker=marker).replace("'", '"') + "'}"
    with pytest.raises(RefusedError, match="refused: the file tries to") as caught:
        Config({"asked": 1, place: text}).get("asked")
    assert named.replace("'", "") in str(caught.value).replace("'", "")
    assert not marker.exists()


def test_a_program_cannot_hide_in_a_value() -> None:
    config = Config({"code": "open('x')", "asked": "${eval:'${code}'}"})
    with pytest.raises(RefusedError, match="open"):
        config.get("asked")


@pytest.mark.parametrize("target", ["builtins.exec", "os.system", "subprocess.run"])
def test_targets_in_the_standard_library_are_refused(target: str) -> None:
    with pytest.raises(RefusedError, match=target):
        Config({"task": {"env_runner": {"_target_": target}}})


def test_other_resolvers_are_refused_only_when_needed() -> None:
    config = Config({"name": "${now:%Y}", "secret": "${oc.env:HOME}", "horizon": 16})
    assert config.get("horizon") == 16
    with pytest.raises(RefusedError, match=r"oc\.env"):
        config.get("secret")


def laughs(twice: str | list[str]) -> dict:
    """Thirty values, each several times the one before."""
    if isinstance(twice, str):
        return {f"a{i + 1}": twice % (f"a{i}", f"a{i}") for i in range(30)}
    return {f"a{i + 1}": [part % f"a{i}" for part in twice] for i in range(30)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"asked": "${asked}"}, "refers to itself"),
        ({"asked": "${one}", "one": "${asked}"}, "refers to itself"),
        ({"asked": "${eval:'1/0'}"}, "cannot compute"),
        ({"asked": "${eval:'\"a\"*99'}"}, "words"),
        ({"asked": "${missing}", "here": 1}, "holds asked, here"),
        ({"here": 1}, "has no asked; it holds here"),
        ({"asked": "x${list}", "list": [1]}, "into text"),
        ({"asked": "${a30}", "a0": "word", **laughs("${%s}${%s}")}, "without bound"),
        ({"asked": "${a8}", "a0": "word", **laughs(["${%s}"] * 4)}, "without bound"),
    ],
)
def test_values_that_cannot_be_had_say_why(values: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Config(values).get("asked")
