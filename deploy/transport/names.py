"""How ROS 2's zenoh middleware names things on the wire: keys, attachments, liveliness tokens.

Follows the design note and the tokens of rmw_zenoh (https://github.com/ros2/rmw_zenoh). A topic is
the key ``<domain>/<topic>/<DDS type>/<type hash>``, and so is a service, whose requests are queries
and whose responses are their replies, with the number and id of the request. Every message carries
an attachment: its number, the time and the id of its sender. Who takes part shows by tokens under
``@ros2_lv``, from which ``ros2 topic list`` and its like are made.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass

from fastloop.deploy.transport.base import SENSOR, QoS

__all__ = ["Endpoint", "attach", "read_attachment", "topic_key"]

_NAME = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
_ATTACHMENT = struct.Struct("<qqB16s")  # number, ns since 1970, length of the id, id


def topic_key(domain: int, topic: str, type: str, type_hash: str) -> str:
    """The key of a topic's messages.

    Raises:
        ValueError: for a name that is no absolute ROS topic.
    """
    if not _NAME.fullmatch(topic):
        raise ValueError(
            f"{topic!r} is no topic; a topic is like /camera/front: slashes, and words of letters, "
            "digits and _ that begin with a letter or _"
        )
    return f"{domain}/{topic[1:]}/{_dds(type)}/{type_hash}"


def attach(number: int, stamp_ns: int, gid: bytes) -> bytes:
    """A message's attachment: its number from 1, ns since 1970, the sender's id of 16 bytes."""
    return _ATTACHMENT.pack(number, stamp_ns, len(gid), gid)


def read_attachment(data: bytes) -> tuple[int, int, bytes] | None:
    """Number, stamp and id as in `attach`; None for anything else."""
    if len(data) != _ATTACHMENT.size:
        return None
    number, stamp_ns, length, gid = _ATTACHMENT.unpack(data)
    return (number, stamp_ns, gid) if length == 16 else None


@dataclass(frozen=True)
class Endpoint:
    """One participant: a node, or a publisher, subscription, service or client of a node.

    Attributes:
        domain: ROS domain.
        session: id of its zenoh session, hexadecimal.
        number: counts from 0 within the session, the node itself being 0.
        kind: ``NN`` node, ``MP`` publisher, ``MS`` subscription, ``SS`` service, ``SC`` client.
        node: its node, with its namespace: ``/vehicle/planner``.
        topic, type, type_hash, qos: of all but a node; a service's name is its topic.
    """

    domain: int
    session: str
    number: int
    kind: str
    node: str
    topic: str = ""
    type: str = ""
    type_hash: str = ""
    qos: QoS = SENSOR

    def token(self) -> str:
        """Its liveliness token."""
        namespace, name = self.node.rsplit("/", 1)
        parts = [
            "@ros2_lv", str(self.domain), self.session, "0", str(self.number), self.kind,
            "%", (namespace or "/").replace("/", "%"), name,
        ]  # fmt: skip
        if self.kind != "NN":
            parts += [self.topic.replace("/", "%"), _dds(self.type), self.type_hash, _qos(self.qos)]
        return "/".join(parts)

    def gid(self) -> bytes:
        """An id of 16 bytes that no other endpoint has."""
        return hashlib.blake2b(self.token().encode(), digest_size=16).digest()

    @classmethod
    def parse(cls, token: str) -> Endpoint | None:
        """What a token says, its quality of service aside; None where it says something else."""
        parts = token.split("/")
        if len(parts) not in (9, 13) or parts[0] != "@ros2_lv":
            return None
        _, domain, session, _, number, kind, _, namespace, name = parts[:9]
        if not (domain.isascii() and domain.isdigit() and number.isascii() and number.isdigit()):
            return None
        node = namespace.replace("%", "/").rstrip("/") + "/" + name
        found = cls(int(domain), session, int(number), kind, node)
        if len(parts) == 9:
            return found
        words = [word for word in parts[10].split("::") if word != "dds_"]
        return cls(
            **{name: getattr(found, name) for name in ("domain", "session", "number", "kind")},
            node=node,
            topic=parts[9].replace("%", "/"),
            type="/".join(words).removesuffix("_"),
            type_hash=parts[11],
        )


def _dds(type: str) -> str:
    """``nav_msgs/msg/Odometry`` as ``nav_msgs::msg::dds_::Odometry_``."""
    package, kind, name = type.split("/")
    return f"{package}::{kind}::dds_::{name}_"


def _qos(qos: QoS) -> str:
    """``reliability:durability:history,depth:deadline:lifespan:liveliness``, in numbers of rmw.

    What is infinite stays empty. The rest is always said, because what an empty place means has
    changed between releases.
    """

    def duration(seconds: float) -> str:
        whole, nanoseconds = divmod(round(seconds * 1e9), 1_000_000_000)
        return f"{whole},{nanoseconds}" if seconds else ","

    reliability = 1 if qos.reliable else 2
    durability = 1 if qos.transient_local else 2
    times = f"{duration(qos.deadline_s)}:{duration(qos.lifespan_s)}"
    return f"{reliability}:{durability}:1,{qos.depth}:{times}:1,,"
