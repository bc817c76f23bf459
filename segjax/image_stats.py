"""What networks were trained on: scale, mean and deviation of the images, once."""

# name -> (scale, RGB mean, RGB deviation): (x * scale - mean) / deviation, x 0..255.
IMAGE_STATS: dict[str, tuple[float, tuple[float, ...], tuple[float, ...]]] = {
    # Caffe's ILSVRC12 mean, as FCN subtracts it (there in BGR order).
    "caffe": (1.0, (122.67892, 116.66877, 104.00699), (1.0, 1.0, 1.0)),
    # VGG's own mean, which PSPNet's, CRF-RNN's and Keras' networks subtract.
    "vgg": (1.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    # Mean and deviation of ImageNet, as torchvision's networks take them.
    "imagenet": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # [-1, 1], for any number of channels.
    "unit": (1 / 127.5, (1.0,), (1.0,)),
}
