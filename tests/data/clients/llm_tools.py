import sys

import llm
from llm.default_plugins.openai_models import Chat


def get_weather(city: str) -> str:
    """The weather in a city."""
    print("CALLED get_weather", {"city": city})
    return "sunny"


model = Chat("any", model_name="any", api_base=f"{sys.argv[1]}/v1", supports_tools=True)
model.key = "none"
tools = [llm.Tool.function(get_weather)]
question = "What is the weather in Paris?"
chain = model.chain(question, tools=tools, options={"temperature": 0}, key="none")
print(chain.text())
