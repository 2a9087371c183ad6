import sys

from langchain_core.tools import tool
from langchain_ollama import ChatOllama


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return "sunny"


model = ChatOllama(base_url=sys.argv[1], model="any", temperature=0)
answer = model.bind_tools([get_weather]).invoke("What is the weather in Paris?")
print("CALLED", answer.tool_calls[0]["name"], answer.tool_calls[0]["args"])
