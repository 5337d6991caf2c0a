"""The image wing: states, controllers, solvers and the two drivers."""
