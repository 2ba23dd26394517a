"""AudioCraft API: text (and a melody) to music over HTTP, with Meta's AudioCraft.

Importing this package is quick and imports neither torch nor audiocraft.
"""

__version__ = "0.2.0"
