"""Numerical kernels: arrays in, arrays out. Nothing here knows Dask, xarray, files or labels."""
