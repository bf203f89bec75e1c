"""What ranks tell each other besides rows: control blocks, bring-up, mailboxes."""
