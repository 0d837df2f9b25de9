"""The link between a host and a device: UART, frames, and the protocol of docs/link.md."""
