"""Architectures for `benchmarks/zoo.py`: small configurations with random weights, one file a field."""

from zoo_networks import audio, plain, text, vision
from zoo_networks.network import Network

NETWORKS: dict[str, Network] = {
    network.name: network for part in (vision, text, audio, plain) for network in part.networks()
}
