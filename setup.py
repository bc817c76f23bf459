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
        "absl-py>=2.1",  # flags
        "etils[epath]>=1.9",  # paths of buckets, as orbax has them
        "array_record>=0.7",  # the file format of prepared datasets
        "flatbuffers>=24.3.25",  # the file format of jax.export
        "flax>=0.12",
        "grain>=0.2.12",  # input pipeline
        "importlib_resources>=6.4",  # needed by tensorflow-datasets on Python >= 3.12
        "jax>=0.9",
        "jsonschema>=4.18",  # checks of JSON files that may be damaged
        "matplotlib>=3.9",  # plots
        "ml_collections>=1.0",
        "numpy>=2.0",
        # Decoding, warping, proposals; replaces opencv-python-headless, as both are
        # the module cv2.
        "opencv-contrib-python-headless>=4.10.0.84",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.25",
        "pillow>=12.0",  # masks, WebP, AVIF, and the codecs of TIFF
        "pyyaml>=6.0.1",  # manifests of experiments.launch
        "scipy>=1.14",  # MATLAB files of data sets
        "submitit>=1.5",  # jobs of experiments.sweep, here and on SLURM
        "tensorboardX>=2.6.2.2",
        "tensorflow-datasets>=4.9.8",  # builders; TensorFlow itself is not used
        "tifffile>=2024.5.10",  # large TIFFs, mapped into memory
        "tqdm>=4.66",
    ],
    package_data={"segjax": ["py.typed"]},
    extras_require={
        "cuda": ["jax[cuda]"],
        "gcs": ["gcsfs>=2024.6"],  # folders that begin with gs://
        "tpu": ["jax[tpu]"],
        "weights": ["h5py>=3.11", "safetensors>=0.4.3"],  # Keras files; safetensors
        "weak": ["scikit-image>=0.25"],  # regions that BoxSup chooses from
        "coco": ["pycocotools>=2.0.8"],  # outlines of the objects of COCO
        # What `make test-all` compares with; PyTorch is large.
        "oracles": ["libtpu", "torch"],
        "test": [
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "scikit-image>=0.25",  # what segjax.scoring is compared with
            "gcp-storage-emulator>=2024.8",  # a storage server for gs://
            "gcsfs>=2024.6",
            "h5py>=3.11",
            "hypothesis>=6.100",
            "mypy>=1.13",
            "pycocotools>=2.0.8",
            "safetensors>=0.4.3",
        ],
    },
)
