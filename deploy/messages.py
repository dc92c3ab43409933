"""ROS 2 messages without ROS: encode, decode, and the hash by which peers tell types apart.

Types and their CDR come from ``rosbags`` (its store of ROS 2 Jazzy); Autoware's trajectory is not
in there, so its text is here, in both of its versions. A type is named as in ROS 2,
``nav_msgs/msg/Odometry``, and a message is an object of the class that `Messages.type` gives.
"""

from __future__ import annotations

import struct
from typing import Any

from fastloop.extras import require

__all__ = ["AUTOWARE_VERSIONS", "BadMessage", "Messages", "nanoseconds"]

_POINT = """\
builtin_interfaces/Duration time_from_start
geometry_msgs/Pose pose
float32 longitudinal_velocity_mps
float32 lateral_velocity_mps
float32 acceleration_mps2
float32 heading_rate_rps
float32 front_wheel_angle_rad
float32 rear_wheel_angle_rad
"""

AUTOWARE_VERSIONS = {
    "unbounded": "std_msgs/Header header\nautoware_planning_msgs/TrajectoryPoint[] points\n",
    "fixed": (
        "uint32 CAPACITY = 10000\n"
        "std_msgs/Header header\n"
        "autoware_planning_msgs/TrajectoryPoint[10000] points\n"
    ),
}
"""Texts of ``autoware_planning_msgs/msg/Trajectory``: since December 2023, and before. The codec of
the fixed one is seconds in the making."""

_SERVICES = {
    "lifecycle_msgs/srv/ChangeState": ("lifecycle_msgs/Transition transition\n", "bool success\n"),
    "lifecycle_msgs/srv/GetState": ("", "lifecycle_msgs/State current_state\n"),
    "lifecycle_msgs/srv/GetAvailableStates": ("", "lifecycle_msgs/State[] available_states\n"),
    "lifecycle_msgs/srv/GetAvailableTransitions": (
        "", "lifecycle_msgs/TransitionDescription[] available_transitions\n"
    ),
}  # fmt: skip
"""Requests and responses. A service's hash is that of a type with both, and an event that tells of
them."""

_EVENT = "service_msgs/msg/ServiceEventInfo"
_EVENT_TEXT = """\
uint8 REQUEST_SENT = 0
uint8 REQUEST_RECEIVED = 1
uint8 RESPONSE_SENT = 2
uint8 RESPONSE_RECEIVED = 3
uint8 event_type
builtin_interfaces/Time stamp
uint8[16] client_gid
int64 sequence_number
"""  # its char is hashed as a uint8 by ROS, and as a char by rosbags

_STAMPED = ("std_msgs/msg/Header", "builtin_interfaces/msg/Time")


class BadMessage(ValueError):  # noqa: N818 - it is the message that is bad, nothing has failed
    """A message that cannot be used; the text says what is wrong with it."""


class Messages:
    """The types that are known, and their codec.

    Args:
        autoware: which of `AUTOWARE_VERSIONS` its trajectory has. Types with another hash do not
            meet: a peer with the other version hears nothing, and gets no error.

    Raises:
        ValueError: for a version that is not one of those.
        MissingExtraError: without the packages of the extra ``ros``.
    """

    def __init__(self, autoware: str = "unbounded") -> None:
        if autoware not in AUTOWARE_VERSIONS:
            raise ValueError(
                f"no version {autoware!r} of Autoware's trajectory; have: "
                f"{', '.join(AUTOWARE_VERSIONS)}"
            )
        typesys = require("rosbags.typesys", extra="ros")
        self.autoware = autoware
        self._store = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
        own = "autoware_planning_msgs/msg/Trajectory"
        texts = {own + "Point": _POINT, own: AUTOWARE_VERSIONS[autoware]}
        for name, text in texts.items():
            self._store.register(typesys.get_types_from_msg(text, name))
        self._store.fielddefs |= typesys.get_types_from_msg(_EVENT_TEXT, _EVENT)
        for name, (request, response) in _SERVICES.items():
            texts = {
                name + "_Request": request,
                name + "_Response": response,
                name + "_Event": f"{_EVENT} info\n{name}_Request[<=1] request\n"
                f"{name}_Response[<=1] response\n",
                name: f"{name}_Request request_message\n{name}_Response response_message\n"
                f"{name}_Event event_message\n",
            }
            for part, text in texts.items():
                self._store.register(_service_names(typesys.get_types_from_msg(text, part)))
        self._hashes: dict[str, str] = {}
        self._begins_with_stamp: dict[str, bool] = {}

    def type(self, name: str) -> Any:
        """The class of a type's messages: a dataclass with the fields of the ROS definition.

        Raises:
            ValueError: for a type that is not known.
        """
        try:
            return self._store.types[name]
        except KeyError:
            package = name.split("/")[0]
            have = sorted(other for other in self._store.types if other.split("/")[0] == package)
            packages = sorted({other.split("/")[0] for other in self._store.types})
            raise ValueError(
                f"no message type {name!r}; have: {', '.join(have or packages)}"
            ) from None

    def hash(self, name: str) -> str:
        """``RIHS01_`` and the SHA-256 of the type's description (REP 2011)."""
        if name not in self._hashes:
            self.type(name)
            self._hashes[name] = self._store.hash_rihs01(name)
        return self._hashes[name]

    def definition(self, name: str) -> str:
        """The type's text with the types in it, as bags and viewers want it."""
        self.type(name)
        text: str = self._store.generate_msgdef(name, ros_version=2)[0]
        return text

    def prepare(self, name: str) -> None:
        """Make the codec of a type now, rather than at its first message (a tenth of a second)."""
        self.type(name)
        self._store.get_msgdef(name)

    def encode(self, message: Any) -> bytes:
        """A message as little-endian CDR, with its header of four bytes.

        Raises:
            BadMessage: where a field does not hold what its type says.
        """
        name = message.__msgtype__
        try:
            return bytes(self._store.serialize_cdr(message, name, little_endian=True))
        except Exception as error:  # the generated code checks nothing by itself
            raise BadMessage(f"cannot encode a {name}: {error}") from error

    def decode(self, name: str, data: bytes) -> Any:
        """The message in `data`; arrays are views of it.

        Raises:
            BadMessage: for bytes that are no message of that type, or not all of one.
        """
        self.type(name)
        try:
            return self._store.deserialize_cdr(data, name)
        except Exception as error:  # whatever bytes from elsewhere make the generated code do
            raise BadMessage(f"{len(data)} bytes are no {name}: {error}") from error

    def stamp(self, name: str, data: bytes) -> int | None:
        """When what an encoded message tells of was so, in nanoseconds since 1970: its header's
        stamp. None where it has none, or an empty one."""
        if not self._stamped(name) or len(data) < 12:
            return None
        seconds, nanoseconds = struct.unpack_from("<iI" if data[1] else ">iI", data, 4)
        return seconds * 1_000_000_000 + nanoseconds or None

    def restamped(self, name: str, data: bytes, stamp_ns: int) -> bytes:
        """An encoded message with another stamp in its header; itself where it has none."""
        if not self._stamped(name) or len(data) < 12:
            return data
        stamp = struct.pack("<iI" if data[1] else ">iI", *divmod(stamp_ns, 1_000_000_000))
        return data[:4] + stamp + data[12:]

    def _stamped(self, name: str) -> bool:
        """Whether a type begins with a stamp, as all with a header do, and the clock."""
        if name not in self._begins_with_stamp:
            fields = self._store.fielddefs.get(name, ([], []))[1]
            first = fields[0][1][1] if fields else ""
            self._begins_with_stamp[name] = first in _STAMPED
        return self._begins_with_stamp[name]

    def time(self, stamp_ns: int) -> Any:
        """``builtin_interfaces/msg/Time`` of nanoseconds since 1970."""
        return self.type("builtin_interfaces/msg/Time")(*divmod(stamp_ns, 1_000_000_000))

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """``std_msgs/msg/Header``."""
        return self.type("std_msgs/msg/Header")(self.time(stamp_ns), frame_id)


def _service_names(found: Any) -> Any:
    """Definitions in which ``rosbags`` has put a ``msg`` into the names of a service's types."""
    if isinstance(found, str):
        return found.replace("/srv/msg/", "/srv/")
    if isinstance(found, dict):
        return {_service_names(key): _service_names(value) for key, value in found.items()}
    if isinstance(found, tuple | list):
        return type(found)(map(_service_names, found))
    return found


def nanoseconds(time: Any) -> int:
    """Nanoseconds of a ``Time`` or ``Duration``."""
    return int(time.sec) * 1_000_000_000 + int(time.nanosec)
