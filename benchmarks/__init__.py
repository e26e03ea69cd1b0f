"""Speed, measured: never asserted in tests, always as ratios of things timed in turn.

Run from the repository root: `python -m benchmarks.startup`, `python -m benchmarks.kernels`,
`python -m benchmarks.inference`; each takes `--help`. `python -m benchmarks.plots`
draws what they found.
"""

from benchmarks.uninstalled import link

link()
