"""Model health while serving: is the policy in its element? Judged beside serving, on a thread with a bounded share."""
