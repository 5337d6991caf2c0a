"""Makes the helpers of this folder (`tiny`, ...) importable from the tests below it."""

from hypothesis import settings

settings.register_profile("steer", deadline=None)  # how long an example takes says more of the machine than of the code
settings.load_profile("steer")
