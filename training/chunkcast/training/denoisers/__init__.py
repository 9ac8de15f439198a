"""Denoisers: networks from a noisy action chunk, its timestep and an encoded observation to the scheduler's target.

One file each: ``residual_mlp``, ``unet`` and ``transformer``, behind the interface in ``denoiser``. They do not know
normalisation, noise schedules or losses, so any of them trains, samples and exports as any other.
"""
