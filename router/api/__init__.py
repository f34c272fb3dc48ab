"""The public app's dialects: one module each, and what they share.

A dialect reads its own request, turns it into jobs, and says the outcome in its own words. What a job is and
who makes it is `router.service`'s part; which words an error gets is `router.api.errors`'.
"""
