"""Foreign requests as values: what their fields are, and what each of them asks of us. Pure.

Routes (`router.api`) and the batch client (`router.client.batch`) read the same words here.
"""
