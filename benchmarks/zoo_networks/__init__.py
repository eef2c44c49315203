"""Architectures for `benchmarks/zoo.py`: small configurations with random weights, one file a field."""

from zoo_networks import audio, packages, plain, text, vision
from zoo_networks.network import Network

NETWORKS: dict[str, Network] = {
    network.name: network for part in (vision, text, audio, plain) for network in part.networks()
}
OF_PACKAGES: dict[str, Network] = {network.name: network for network in packages.networks()}
"""Of packages that happen to be installed."""
