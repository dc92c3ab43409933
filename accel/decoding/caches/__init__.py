"""Which keys and values of an answer are kept from pass to pass, where none stay right for ever."""

from fastloop.accel.decoding.caches.cache import Cache, Plan
from fastloop.accel.decoding.caches.dkv_decode import DKVDecode
from fastloop.accel.decoding.caches.dkv_greedy import DKVGreedy
from fastloop.accel.decoding.caches.dual import DualCache
from fastloop.accel.decoding.caches.none import NoCache
from fastloop.accel.decoding.caches.prefix import PrefixCache
from fastloop.accel.decoding.caches.progress import Progress
from fastloop.accel.decoding.caches.vicinity import VicinityCache
from fastloop.accel.decoding.caches.window_diffusion import WindowDiffusion

__all__ = [
    "Cache",
    "DKVDecode",
    "DKVGreedy",
    "DualCache",
    "NoCache",
    "Plan",
    "PrefixCache",
    "Progress",
    "VicinityCache",
    "WindowDiffusion",
]
