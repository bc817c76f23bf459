from setuptools import find_packages, setup

setup(
    name="segjax",
    version="0.1.0",
    description="The classical semantic-segmentation networks in JAX and Flax",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["segjax", "segjax.*", "experiments", "experiments.*"]
    ),
    install_requires=[
        "absl-py",  # flags
        "array_record",  # the file format of prepared datasets
        "flatbuffers",  # the file format of jax.export
        "flax>=0.12",
        "grain>=0.2.12",  # input pipeline
        "importlib_resources",  # needed by tensorflow-datasets on Python >= 3.12
        "jax>=0.9",
        "jsonschema",  # checks of JSON files that may be damaged
        "matplotlib",  # plots
        "ml_collections>=1.0",
        "numpy>=2.0",
        "opencv-python-headless>=4.9",  # decoding, warping
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.25",
        "pillow",  # palette PNGs
        "pyyaml",  # manifests of experiments.launch
        "submitit>=1.5",  # jobs of experiments.sweep, here and on SLURM
        "tensorboardX",
        "tensorflow-datasets>=4.9.8",  # builders; TensorFlow itself is not used
        "tifffile",  # large TIFFs, mapped into memory
        "tqdm",
    ],
    extras_require={
        "cuda": ["jax[cuda]"],
        "tpu": ["jax[tpu]"],
        "weights": ["h5py", "safetensors"],  # Keras files; safetensors
        "test": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "scipy",
            "h5py",
            "safetensors",
        ],
    },
)
