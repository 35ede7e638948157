"""The promptable segmenter, behind the Segmenter protocol."""
