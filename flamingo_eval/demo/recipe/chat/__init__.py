"""The recipe of the second demo, which chats: a tiny Idefics3, trained from scratch on the same world."""
