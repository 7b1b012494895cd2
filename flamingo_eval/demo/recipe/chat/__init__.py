"""The recipe of the second demo, which chats: a tiny Idefics3, trained from nothing on the same world."""
