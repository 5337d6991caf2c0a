"""Makes the helpers of this folder (`tiny`, ...) importable from the tests below it."""
