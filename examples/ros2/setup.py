"""The ament_python package voice_asr_ros; colcon runs this file."""

from setuptools import setup

NAME = "voice_asr_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    maintainer="the voice-asr project",
    maintainer_email="maintainer@example.com",
    description="Publishes what the voice ASR service recognises: Mandarin text, the service's state and its events.",
    license="Apache-2.0",
    entry_points={"console_scripts": ["voice_asr = voice_asr_ros.node:main"]},
)
