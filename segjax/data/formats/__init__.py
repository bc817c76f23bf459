"""Image file formats: one module for each that no library reads rightly by itself.

Every module reads a ``Header`` without decoding pixels, and decodes pixels as stored.
``segjax.data.decoding`` picks the module, compares both and applies the orientation.
"""
