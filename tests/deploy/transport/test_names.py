"""What is on the wire, word for word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.deploy.transport.base import LATCHED, SENSOR, SERVICE, plan_qos
from fastloop.deploy.transport.graph import Graph
from fastloop.deploy.transport.names import Endpoint, attach, read_attachment, topic_key

STRING = "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"


def endpoint(**changes):
    told = {
        "domain": 0, "session": "a1b2", "number": 3, "kind": "MP", "node": "/car/planner",
        "topic": "/a/chatter", "type": "std_msgs/msg/String", "type_hash": STRING,
    }  # fmt: skip
    return Endpoint(**(told | changes))


def test_the_key_of_a_topic():
    key = topic_key(0, "/chatter", "std_msgs/msg/String", STRING)
    assert key == f"0/chatter/std_msgs::msg::dds_::String_/{STRING}"


@pytest.mark.parametrize(
    "topic", ["chatter", "/", "/a//b", "/a/", "/*", "/a/**", "/1a", "/a b", ""]
)
def test_what_is_no_topic_never_becomes_a_key(topic):
    with pytest.raises(ValueError, match="is no topic"):
        topic_key(0, topic, "std_msgs/msg/String", STRING)


@pytest.mark.parametrize(
    ("qos", "text"),
    [
        (SENSOR, "2:2:1,1:,:,:1,,"),
        (LATCHED, "1:1:1,1:,:,:1,,"),
        (plan_qos(0.1, 6.4), "1:2:1,1:0,200000000:6,400000000:1,,"),
    ],
)
def test_the_token_of_a_publisher(qos, text):
    assert endpoint(qos=qos).token() == (
        f"@ros2_lv/0/a1b2/0/3/MP/%/%car/planner/%a%chatter/std_msgs::msg::dds_::String_/{STRING}/"
        + text
    )


def test_a_service_is_named_as_in_the_design_note():
    kind = "example_interfaces/srv/AddTwoInts"
    words = f"example_interfaces::srv::dds_::AddTwoInts_/{STRING}"
    assert topic_key(2, "/add_two_ints", kind, STRING) == f"2/add_two_ints/{words}"
    changes = {"kind": "SS", "topic": "/add_two_ints", "type": kind, "qos": SERVICE}
    token = endpoint(**changes).token()
    assert token == f"@ros2_lv/0/a1b2/0/3/SS/%/%car/planner/%add_two_ints/{words}/1:2:1,10:,:,:1,,"
    assert Endpoint.parse(token) == endpoint(**(changes | {"qos": SENSOR}))


def test_a_client_with_another_version_of_a_service_is_named():
    graph = Graph()
    graph.appeared(endpoint(kind="SC", session="other", type_hash="RIHS01_old").token())
    (fault,) = graph.faults(endpoint(kind="SS"))
    assert "/car/planner has std_msgs/msg/String with RIHS01_old" in fault


def test_the_token_of_a_node():
    assert Endpoint(7, "a1b2", 0, "NN", "/planner").token() == "@ros2_lv/7/a1b2/0/0/NN/%/%/planner"


@pytest.mark.parametrize("node", ["/planner", "/car/planner"])
@pytest.mark.parametrize("kind", ["NN", "MS"])
def test_a_token_says_who_it_is_of(node, kind):
    sent = Endpoint(0, "a1b2", 0, "NN", node) if kind == "NN" else endpoint(kind=kind, node=node)
    assert Endpoint.parse(sent.token()) == sent


@given(st.text())
def test_any_text_is_a_token_or_none(text):
    Endpoint.parse(text)
    Endpoint.parse("@ros2_lv/0/a/0/3/MP/%/%/n/" + text)


def test_the_attachment():
    data = attach(1, 1_700_000_000_000_000_000, bytes(range(16)))
    assert data == (
        b"\1\0\0\0\0\0\0\0" + (1_700_000_000_000_000_000).to_bytes(8, "little") + b"\x10"
        + bytes(range(16))
    )  # fmt: skip
    assert read_attachment(data) == (1, 1_700_000_000_000_000_000, bytes(range(16)))


@given(st.binary())
def test_any_bytes_are_an_attachment_or_none(data):
    read_attachment(data)
    assert read_attachment(bytes(16) + b"\x0f" + bytes(16)) is None


def test_ids_differ():
    assert len({endpoint(number=number).gid() for number in range(10)}) == 10
    assert len(endpoint().gid()) == 16


def test_who_has_another_version_of_a_type_is_named():
    graph = Graph()
    ours = endpoint(kind="MS")
    graph.appeared(endpoint(session="other").token())
    assert graph.faults(ours) == []
    wrong = endpoint(session="other", number=4, type_hash="RIHS01_00", node="/old")
    graph.appeared(wrong.token())
    (fault,) = graph.faults(ours)
    assert "/a/chatter: /old has std_msgs/msg/String with RIHS01_00, this node has" in fault
    graph.vanished(wrong.token())
    assert graph.faults(ours) == []


def test_only_the_other_side_of_the_same_topic_counts():
    graph = Graph()
    for other in (
        endpoint(session="other", kind="MS"), endpoint(kind="MP"),
        endpoint(session="other", topic="/b"),
    ):  # fmt: skip
        graph.appeared(other.token())
    graph.appeared("@ros2_lv/0/nonsense")
    assert graph.counterparts(endpoint(kind="MS")) == []
