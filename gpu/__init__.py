"""CUDA kernels.  Importing this package needs nothing; `fflearn.gpu.kernels` needs numba.cuda."""
