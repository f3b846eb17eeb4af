"""The config that docs/design.md shows, as a user writes it."""

POKEMON = """\
name: pokemon
model: stable-diffusion-v1-5/stable-diffusion-v1-5
data: {images: ./pokemon, resolution: 512, crop: center, flip: true}
batch: 256
micro_batch: 8
epochs: 20
lr: 1e-5
warmup_steps: 100
precision: bf16
zero: 2
ema: true
checkpoint: {every_steps: 200, keep: 3}
pictures: {every_steps: 100, prompts: [a red dragon, a blue fox]}
cluster: {site: mycluster, nodes: 2-8, gpus_per_node: 4, time: 12:00:00}
runs: /scratch/me/runs
"""
