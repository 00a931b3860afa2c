# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The library's version, which Cargo.toml has; a test compares them."""

__version__ = "0.1.0"
