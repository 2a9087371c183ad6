import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return "sunny"


model = ChatOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", model="any", temperature=0)
answer = model.bind_tools([get_weather]).invoke("What is the weather in Paris?")
print("CALLED", answer.tool_calls[0]["name"], answer.tool_calls[0]["args"])
