"""Tests of the exchange alone: real processes, no SGLang."""
