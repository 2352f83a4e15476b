"""Holds a webhook's request against its signature, as a receiver with the public Standard Webhooks library does.

usage: webhook.py < {"secret": "whsec_…", "headers": {…}, "body": "…"}; exits 1 if it must not be trusted.
"""

import json
import sys

from standardwebhooks import Webhook

request = json.load(sys.stdin)
Webhook(request["secret"]).verify(request["body"].encode(), request["headers"])
