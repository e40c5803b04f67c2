"""The one thing pyproject.toml cannot say: conf/ and recipes/ stand at the top of the checkout and ship inside the package."""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["largeforge", "largeforge.*"]), "largeforge.conf", "largeforge.recipes"],
    package_dir={"largeforge.conf": "conf", "largeforge.recipes": "recipes"},
)
