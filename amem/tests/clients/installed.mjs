// Whether the clients for Node can be imported.
import OpenAI from "openai";

console.log(typeof OpenAI);
