"""Clinical conversations and pairs in, policies, scores and a report out."""

import logging

# Where bitsandbytes is installed PEFT imports it, and on some CPUs it then warns of a kernel from the hub that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))
