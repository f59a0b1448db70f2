//! Process settings; the only reader of the environment (and of `.env`).
