"""The operator sweep: every operator that PyTorch tests itself on, through our backend.

`make sweep` runs all of it, `test_sweep.py` a fixed slice, `status.json` holds what is known to
fail and what runs in our own kernels.
"""
