"""The serving side: what answers a photo with a class. On an exported engine nothing here imports torch."""
