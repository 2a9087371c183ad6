import sys

from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama


def get_weather(city: str) -> str:
    """The weather in a city."""
    print("CALLED get_weather", {"city": city})
    return "sunny"


model = Ollama(model="any", base_url=sys.argv[1], temperature=0, context_window=2048)
tools = [FunctionTool.from_defaults(get_weather)]
print(model.predict_and_call(tools, "What is the weather in Paris?"))
