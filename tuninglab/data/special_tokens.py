"""OpenFlamingo's two tokens: where a picture stands, and where an answer ends.

The model's processor and the prompt of the data both name them.
"""

IMAGE_TOKEN = "<image>"
EOC_TOKEN = "<|endofchunk|>"
